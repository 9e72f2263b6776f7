"""Stacked bars over time, laid out here and drawn by the template as SVG.

The drawing is 100 units high and one wide for each bar, and is stretched to its place; all texts
stand beside it in HTML, so that they stay as large on a phone.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

HEIGHT = 100.0
COLORS = 8  # and one for the rest
REST = "all others"
GAP = 0.18  # of a bar's room
_NICE = (1, 2, 2.5, 5, 10)


@dataclass(frozen=True, slots=True)
class Piece:
    """One series' part of one bar; `color` is the number of its class."""

    label: str
    color: int
    value: int
    y: float
    height: float


@dataclass(frozen=True, slots=True)
class Bar:
    """What was in one hour or day."""

    at: datetime | date
    label: str
    x: float
    width: float
    total: int
    pieces: tuple[Piece, ...]


@dataclass(frozen=True, slots=True)
class Series:
    """One entry of the legend."""

    label: str
    color: int
    total: int


@dataclass(frozen=True, slots=True)
class Chart:
    """Everything a template needs to draw it. `ticks` are values, from the top to 0."""

    title: str
    unit: str  # hour or day
    what: str  # what is counted
    bars: tuple[Bar, ...]
    series: tuple[Series, ...]
    ticks: tuple[float, ...]
    ends: tuple[str, str, str] = ("", "", "")  # the labels below: first, middle, last
    width: int = field(default=0)
    total: int = field(default=0)


def stacked(
    title: str,
    rows: Iterable[Mapping[str, Any]],
    bounds: tuple[datetime, datetime],
    unit: str,
    column: str = "charged_tokens",
    what: str = "tokens",
) -> Chart:
    """Lay out rows of `at`, `name`, `label` and the column, as `Usage.series` returns them."""
    found: dict[Any, dict[str | None, int]] = {}
    sums: dict[str | None, int] = {}
    labels: dict[str | None, str] = {None: REST}
    for row in rows:
        value = int(row[column])
        found.setdefault(row["at"], {})[row["name"]] = value
        sums[row["name"]] = sums.get(row["name"], 0) + value
        labels[row["name"]] = REST if row["name"] is None else str(row["label"] or row["name"])
    names = sorted(sums, key=lambda name: (name is None, -sums[name], str(name)))
    colors = {
        name: COLORS if name is None or place >= COLORS else place
        for place, name in enumerate(names)
    }
    slots = _slots(bounds, unit)
    top = _top(max((sum(each.values()) for each in found.values()), default=0))
    bars = tuple(
        _bar(place, at, unit, _parts(found.get(at, {}), names, labels, colors), top)
        for place, at in enumerate(slots)
    )
    shown = [bars[0].label, bars[len(bars) // 2].label, bars[-1].label]
    return Chart(
        title=title,
        unit=unit,
        what=what,
        bars=bars,
        series=tuple(Series(labels[name], colors[name], sums[name]) for name in names),
        ticks=(top, top / 2, 0),
        ends=(shown[0], shown[1], shown[2]),
        width=len(bars),
        total=sum(sums.values()),
    )


def _parts(
    values: Mapping[str | None, int],
    names: Sequence[str | None],
    labels: Mapping[str | None, str],
    colors: Mapping[str | None, int],
) -> list[tuple[str, int, int]]:
    return [(labels[name], colors[name], values[name]) for name in names if values.get(name)]


def _bar(
    place: int, at: datetime | date, unit: str, parts: list[tuple[str, int, int]], top: float
) -> Bar:
    pieces, below = [], HEIGHT
    for label, color, value in parts:
        height = value * HEIGHT / top
        below -= height
        pieces.append(Piece(label, color, value, round(below, 3), round(height, 3)))
    return Bar(
        at=at,
        label=f"{at:%H:%M}" if unit == "hour" else f"{at:%d %b}",
        x=place + GAP / 2,
        width=1 - GAP,
        total=sum(value for _, _, value in parts),
        pieces=tuple(pieces),
    )


def _slots(bounds: tuple[datetime, datetime], unit: str) -> list[datetime | date]:
    """Return every hour, or every date, from the first bound up to the second."""
    since, until = (bound.astimezone(UTC) for bound in bounds)
    if unit == "hour":
        return [
            since + timedelta(hours=n) for n in range(int((until - since).total_seconds() // 3600))
        ]
    return [since.date() + timedelta(days=n) for n in range((until - since).days)]


def _top(most: int) -> float:
    """Return a round number that nothing passes."""
    if most <= 0:
        return 1.0
    step = 10 ** math.floor(math.log10(most))
    return float(next(step * nice for nice in _NICE if step * nice >= most))
