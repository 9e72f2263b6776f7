"""How values read on a page: numbers with thin separators, units, times in UTC."""

from __future__ import annotations

import math
from datetime import UTC, date, datetime
from typing import Any

THIN = "\u202f"  # a narrow space that does not break
NONE = "\u2013"
_STEPS = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))
_BYTES = ("B", "KiB", "MiB", "GiB", "TiB")
_SPANS = ((86_400, "d"), (3600, "h"), (60, "min"), (1, "s"))


def number(value: float | None) -> str:
    """Write a whole number with thin separators; a dash for None."""
    return NONE if value is None else f"{round(value):,}".replace(",", THIN)


def short(value: float | None) -> str:
    """Write a number in at most four characters and a unit, as axes and cards want it."""
    if value is None:
        return NONE
    for size, unit in _STEPS:
        if abs(value) >= size * 0.9995:
            return f"{value / size:.3g}{THIN}{unit}"
    return f"{value:.3g}"


def limit(value: int | None) -> str:
    """Write a limit; None is unlimited."""
    return "unlimited" if value is None else number(value)


def milliseconds(value: float | None) -> str:
    """Write a time that was measured in milliseconds."""
    if value is None:
        return NONE
    if value >= 10_000:
        return f"{value / 1000:.0f}{THIN}s"
    return f"{value / 1000:.2f}{THIN}s" if value >= 1000 else f"{value:.0f}{THIN}ms"


def size(value: int | None) -> str:
    """Write a number of bytes."""
    if value is None:
        return NONE
    place = min(int(math.log(value, 1024)), len(_BYTES) - 1) if value else 0
    scaled = value / 1024**place
    return f"{scaled:.{1 if place else 0}f}{THIN}{_BYTES[place]}"


def span(seconds: float | None) -> str:
    """Write a span of time by its two greatest units."""
    if seconds is None:
        return NONE
    left, parts = max(0, round(seconds)), list[str]()
    for length, unit in _SPANS:
        if left >= length and len(parts) < 2:
            parts.append(f"{left // length}{THIN}{unit}")
            left %= length
        elif parts:
            break
    return " ".join(parts) or f"0{THIN}s"


def age(at: datetime | float | None) -> str:
    """Say how long ago an instant was, or how long it is until then."""
    if at is None:
        return NONE
    seconds = (datetime.now(UTC) - _utc(at)).total_seconds()
    return f"{span(seconds)} ago" if seconds >= 0 else f"in {span(-seconds)}"


def instant(at: datetime | float | None) -> str:
    """Write an instant as people read it, in UTC."""
    if at is None:
        return NONE
    return f"{_utc(at):%Y-%m-%d %H:%M:%S}"


def iso(at: datetime | date | float) -> str:
    """Write an instant for the `datetime` of a `<time>`."""
    if isinstance(at, date) and not isinstance(at, datetime):
        return at.isoformat()
    return f"{_utc(at):%Y-%m-%dT%H:%M:%SZ}"


def field_time(at: datetime | None) -> str:
    """Write an instant as `<input type=datetime-local>` takes it."""
    return "" if at is None else f"{_utc(at):%Y-%m-%dT%H:%M}"


def share(part: float, whole: float | None) -> int:
    """Return a percentage, rounded down; above 100 where more than the whole is spent."""
    if not whole:
        return 100 if part else 0
    return max(0, math.floor(part * 100 / whole))


def plural(count: int, word: str) -> str:
    """Write a count and what is counted."""
    return f"{number(count)} {word}{'' if count == 1 else 's'}"


FILTERS: dict[str, Any] = {
    each.__name__: each
    for each in (
        number,
        short,
        limit,
        milliseconds,
        size,
        span,
        age,
        instant,
        iso,
        field_time,
        share,
        plural,
    )
}


def _utc(at: datetime | date | float) -> datetime:
    if isinstance(at, datetime):
        try:
            return (at if at.tzinfo else at.replace(tzinfo=UTC)).astimezone(UTC)
        except OverflowError:  # within a day of the first or last year there is
            return at.replace(tzinfo=UTC)
    if isinstance(at, date):
        return datetime(at.year, at.month, at.day, tzinfo=UTC)
    return datetime.fromtimestamp(at, UTC)
