"""Usage over time, drawn and in figures, and the same as CSV."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from quart import Blueprint, Response

from trio_gateway.services.usage import Usage, last_days, last_hours
from trio_gateway.web.admin.api.exports import export
from trio_gateway.web.admin.api.usage import UsageRow
from trio_gateway.web.admin.dashboard import charts
from trio_gateway.web.admin.dashboard.paging import argument, one_of
from trio_gateway.web.admin.dashboard.shell import books, page
from trio_gateway.web.admin.office import office

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence
    from datetime import datetime

    from trio_gateway.services.usage import By, Unit

# What the address may ask for: a span, its unit, and how many of them.
SPANS: dict[str, tuple[str, str, int]] = {
    "24h": ("Last 24 hours", "hour", 24),
    "72h": ("Last 3 days, by the hour", "hour", 72),
    "7d": ("Last 7 days", "day", 7),
    "30d": ("Last 30 days", "day", 30),
    "90d": ("Last 90 days", "day", 90),
    "365d": ("Last 365 days", "day", 365),
}
BYS = {"model": "Model", "tenant": "Tenant", "outcome": "Outcome"}
COLUMNS = {
    "charged_tokens": "tokens charged",
    "prompt_tokens": "prompt tokens",
    "completion_tokens": "output tokens",
    "requests": "requests",
    "failures": "failures",
}
SERIES = 7
MOST_SERIES = 1000  # in an export
SUMS = ("requests", "failures", "prompt_tokens", "completion_tokens", "charged_tokens")

blueprint = Blueprint("usage", __name__)


@dataclass(frozen=True, slots=True)
class Asked:
    """What the address asks for; `tenant` is a name or an id, or empty."""

    span: str
    by: str
    what: str
    tenant: str
    bounds: tuple[datetime, datetime]
    unit: str


@blueprint.get("/usage")
async def show() -> Response:
    """Draw one span by one thing."""
    asked = _asked()
    rows, tenant = await _read(asked, SERIES)
    names = BYS[asked.by].lower()
    title = f"{COLUMNS[asked.what].capitalize()} by {names}, {SPANS[asked.span][0].lower()}"
    return await page(
        "usage.html",
        asked=asked,
        tenant=tenant,
        spans=[(name, each[0]) for name, each in SPANS.items()],
        bys=BYS,
        columns=COLUMNS,
        chart=charts.stacked(
            title, rows, asked.bounds, asked.unit, asked.what, COLUMNS[asked.what]
        ),
        rows=_summed(rows),
    )


@blueprint.get("/usage.csv")
async def sums() -> Response:
    """Send the same sums, a row for each hour or day and name."""
    asked = _asked()
    rows, _ = await _read(asked, MOST_SERIES)

    async def once() -> AsyncIterator[Sequence[Any]]:
        yield rows

    return await export(f"usage-by-{asked.by}-{asked.span}", UsageRow, "csv", once())


def _asked() -> Asked:
    span = one_of("span", tuple(SPANS), "30d")
    unit, count = SPANS[span][1], SPANS[span][2]
    return Asked(
        span=span,
        by=one_of("by", tuple(BYS)),
        what=one_of("what", tuple(COLUMNS)),
        tenant=argument("tenant"),
        bounds=last_hours(count) if unit == "hour" else last_days(count),
        unit=unit,
    )


async def _read(asked: Asked, most: int) -> tuple[list[dict[str, Any]], Any]:
    tenant = await books().accounts.show(asked.tenant) if asked.tenant else None
    rows = await Usage(office().postgres).series(
        cast("By", asked.by),
        *asked.bounds,
        unit=cast("Unit", asked.unit),
        tenant_id=None if tenant is None else tenant["id"],
        most=most,
    )
    return rows, tenant


def _summed(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Sum over time, the greatest first, the rest last."""
    sums: dict[str | None, dict[str, Any]] = {}
    for row in rows:
        label = charts.REST if row["name"] is None else row["label"] or row["name"]
        found = sums.setdefault(
            row["name"], {"name": row["name"], "label": label, **dict.fromkeys(SUMS, 0)}
        )
        for name in SUMS:
            found[name] += row[name]
    return sorted(sums.values(), key=lambda row: (row["name"] is None, -row["charged_tokens"]))
