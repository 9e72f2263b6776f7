"""What the doctor says about one thing, and how such sentences are grouped."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Finding:
    """`state` is `fail` for what stops calls; `advice` is empty where there is none to give."""

    check: str
    state: Literal["ok", "warn", "fail"]
    detail: str
    advice: str = ""


@dataclass(frozen=True)
class Section:
    """Findings about one part of an installation, in the order in which they are read."""

    title: str
    findings: tuple[Finding, ...]


def ok(check: str, detail: str, advice: str = "") -> Finding:
    """Return a finding that asks for nothing; `advice` is for what cannot be seen from here."""
    return Finding(check, "ok", detail, advice)


def warn(check: str, detail: str, advice: str) -> Finding:
    """Return a finding that can wait."""
    return Finding(check, "warn", detail, advice)


def fail(check: str, detail: str, advice: str) -> Finding:
    """Return a finding that cannot."""
    return Finding(check, "fail", detail, advice)


def ahead(theirs: float, before: float, after: float) -> float:
    """Return by how many seconds, at least, another clock is ahead of this machine's.

    It was read between two readings of ours, however far they are apart: this machine, or the
    other side, may be busy.
    """
    return theirs - min(max(theirs, before), after)


def clock(check: str, skew: float) -> Finding:
    """Judge by how many seconds another clock is ahead of this machine's."""
    detail = f"{abs(skew):.1f} s {'ahead of' if skew > 0 else 'behind'} this machine"
    if abs(skew) < 1:
        return ok(check, "agrees with this machine's")
    advice = "Run a time service (NTP) on every machine: keys expire by these clocks."
    return fail(check, detail, advice) if abs(skew) >= 30 else warn(check, detail, advice)
