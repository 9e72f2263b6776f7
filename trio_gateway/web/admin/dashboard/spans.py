"""Spans of time that a page may be asked for: the last hours and days, and calendar months."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from trio_gateway.services.account_rows import Refused
from trio_gateway.services.usage import last_days, last_hours

if TYPE_CHECKING:
    from trio_gateway.services.usage import Unit

MONTHS = 13  # offered, this one included; earlier ones may be asked for
_HOURS = {"24h": ("Last 24 hours", 24), "72h": ("Last 3 days, by the hour", 72)}
_DAYS = {
    "7d": ("Last 7 days", 7),
    "30d": ("Last 30 days", 30),
    "90d": ("Last 90 days", 90),
    "365d": ("Last 365 days", 365),
}
_MONTH = re.compile(r"(20[2-9][0-9])-(0[1-9]|1[0-2])")


@dataclass(frozen=True, slots=True)
class Span:
    """What lies within `bounds`, in hours or days of UTC; the second is not part of it."""

    name: str  # in addresses and names of files
    title: str
    unit: Unit
    bounds: tuple[datetime, datetime]


def span_of(name: str, now: datetime | None = None) -> Span:
    """Return one span. Raises Refused."""
    now = now or datetime.now(UTC)
    if name in _HOURS:
        title, count = _HOURS[name]
        return Span(name, title, "hour", last_hours(count, now))
    if name in _DAYS:
        title, count = _DAYS[name]
        return Span(name, title, "day", last_days(count, now))
    found = _MONTH.fullmatch(name)
    first = datetime(int(found[1]), int(found[2]), 1, tzinfo=UTC) if found else now
    if not found or first > now:
        raise Refused(f"must be one of {', '.join((*_HOURS, *_DAYS))}, or a month", "span")
    return _month(first, now)


def offered(now: datetime | None = None) -> list[Span]:
    """Return the spans that a form offers: rolling ones first, then months, the latest first."""
    now = now or datetime.now(UTC)
    months = [now.year * 12 + now.month - 1 - back for back in range(MONTHS)]
    names = [f"{month // 12:04}-{month % 12 + 1:02}" for month in months]
    return [span_of(name, now) for name in (*_HOURS, *_DAYS, *names)]


def _month(first: datetime, now: datetime) -> Span:
    """Return a calendar month; of the present one the days so far."""
    following = first.replace(year=first.year + first.month // 12, month=first.month % 12 + 1)
    until = min(following, last_days(1, now)[1])
    soon = ", so far" if until < following or following > now else ""
    return Span(f"{first:%Y-%m}", f"{first:%B %Y}{soon}", "day", (first, until))
