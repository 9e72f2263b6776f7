"""The W3C `traceparent` header, read strictly: a caller's word that is not well made is no word."""

from __future__ import annotations

import re
from dataclasses import dataclass

# Version 00 has these four fields and no more; a later one may have more behind a dash.
_FORM = re.compile(rb"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-[!-~]*)?")
MOST = 256  # bytes looked at


@dataclass(frozen=True, slots=True)
class Parent:
    """The caller's span."""

    trace_id: int
    span_id: int
    sampled: bool


def parse_traceparent(value: bytes) -> Parent | None:
    """Return the caller's span, None where the header is missing or not valid."""
    found = _FORM.fullmatch(value) if len(value) <= MOST else None
    if found is None:
        return None
    version, trace_id, span_id, flags, more = found.groups()
    if version == b"ff" or (version == b"00" and more is not None):
        return None
    parent = Parent(int(trace_id, 16), int(span_id, 16), sampled=bool(int(flags, 16) & 1))
    return parent if parent.trace_id and parent.span_id else None
