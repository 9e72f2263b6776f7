"""Instants as PostgreSQL sends them: each that it can hold has one here, in UTC.

Its years go from -4713 to 294276, and it has two infinities. What is beyond Python's years is
read as their first or last instant, which are written as the infinities.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

FIRST = datetime.min.replace(tzinfo=UTC)
LAST = datetime.max.replace(tzinfo=UTC)
_EPOCH = datetime(2000, 1, 1, tzinfo=UTC)
_STEP = timedelta(microseconds=1)
_INFINITY = 2**63 - 1


def read_instant(sent: tuple[int]) -> datetime:
    """Return the instant so many microseconds after the first of 2000."""
    try:
        return _EPOCH + sent[0] * _STEP
    except OverflowError:
        return LAST if sent[0] > 0 else FIRST


def write_instant(at: datetime) -> tuple[int]:
    """Return the microseconds; an instant without a zone is one of this machine's."""
    aware = at if at.tzinfo else at.astimezone(UTC)
    if aware in {FIRST, LAST}:
        return (_INFINITY if aware == LAST else -_INFINITY - 1,)
    return ((aware - _EPOCH) // _STEP,)
