"""Instants that the books take: with their zone, from 1970 to 8999."""

from __future__ import annotations

from datetime import UTC, datetime

from trio_gateway.services.account_rows import Refused

FIRST = datetime(1970, 1, 1, tzinfo=UTC)
BEYOND = datetime(9000, 1, 1, tzinfo=UTC)


def check_instant(at: datetime | None, param: str) -> None:
    """Raise Refused for an instant that is none of ours; None is none."""
    if at is None:
        return
    if at.tzinfo is None:
        raise Refused("must say its time zone", param)
    if not FIRST <= at < BEYOND:
        raise Refused("must be a time from 1970 to 8999", param)


def check_end(at: datetime | None, param: str) -> None:
    """Raise Refused for the end of something new that would be over already."""
    check_instant(at, param)
    if at is not None and at <= datetime.now(UTC):
        raise Refused("must be in the future", param)
