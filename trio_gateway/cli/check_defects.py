"""What is known to be wrong with releases of Ollama, as far as the gateway's callers notice.

Faults that are in every release, or that no release is known to have mended, are not here: all
of them are reached through management paths, which the gateway does not have.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

Version = tuple[int, ...]

FROM_SOURCE: Version = (0, 0, 0)  # what a build from source calls itself


@dataclass(frozen=True)
class Defect:
    """Something in the releases from `since` on, and mended in `mended`."""

    mended: Version
    what: str
    since: Version = (0,)


KNOWN = (
    Defect((0, 1, 47), "CVE-2024-45436: a model that it pulls may write files anywhere"),
    Defect(
        (0, 12, 5), "models that think do so only when asked, so answers differ between backends"
    ),
    Defect((0, 12, 10), "tool calls have no ids"),
    Defect((0, 12, 11), "logprobs are not given"),
    Defect(
        (0, 14, 3),
        "CVE-2025-51471: a registry that it pulls from can have its token sent elsewhere",
    ),
    Defect(
        (0, 17, 1),
        "CVE-2026-7482: whoever reaches its port can read its memory by create and push",
    ),
    Defect(
        (0, 30, 1),
        "prompt tokens that were cached are not counted, so calls are charged too little",
        since=(0, 30, 0),
    ),
    Defect((0, 32, 10), "repeat_penalty is 1.1 by default, later 1.0, so answers differ"),
    Defect((0, 32, 15), "an answer that it cannot parse may hang until TRIO_GATEWAY_IDLE_TIMEOUT"),
)


def parse(text: str) -> Version | None:
    """Read `0.32.15` or `0.33.0-rc1`; None for what names no release."""
    found = re.match(r"v?(\d{1,6})\.(\d{1,6})\.(\d{1,6})(?!\d)", text)
    return tuple(int(number) for number in found.groups()) if found else None


def defects_of(version: Version) -> tuple[Defect, ...]:
    """Return what applies to a release, in the order in which it was mended."""
    return tuple(each for each in KNOWN if each.since <= version < each.mended)


def spelled(version: Version) -> str:
    """Write it as Ollama does."""
    return ".".join(map(str, version))
