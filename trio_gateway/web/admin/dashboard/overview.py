"""The first page: what goes on now, and what the last day and month were like."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from quart import Blueprint, Response

from trio_gateway.services.usage import Usage, last_days, last_hours
from trio_gateway.web.admin.dashboard import charts
from trio_gateway.web.admin.dashboard.numbers import DAY, spoken, traffic
from trio_gateway.web.admin.dashboard.shell import books, page
from trio_gateway.web.admin.dashboard.together import POSTGRES, REDIS, together
from trio_gateway.web.admin.office import office

if TYPE_CHECKING:
    from datetime import datetime

    from trio_gateway.clients.postgres import Connection
    from trio_gateway.services.usage import Row

MONTH = 30  # days
SERIES = 7  # in one chart, and the rest
NEAR_END = 8  # budgets shown

blueprint = Blueprint("overview", __name__)


@blueprint.get("/")
async def overview() -> Response:
    """Read sums, reports and notices; nothing here grows with keys or the ledger."""
    here = office()
    hours, days = last_hours(DAY), last_days(MONTH)
    found, missing = await together(
        traffic=(REDIS, partial(traffic, here)),
        sums=(POSTGRES, partial(here.postgres.run, _sums, hours, days)),
        budgets=(POSTGRES, partial(books().notices.current, NEAR_END)),
    )
    totals, hourly, daily = found["sums"] or (None, None, None)
    return await page(
        "overview.html",
        503 if missing else 200,
        missing=missing,
        now=found["traffic"],
        day=None if totals is None else spoken(totals),
        outcomes=totals and totals["outcomes"],
        hourly=hourly is not None
        and charts.stacked("Tokens by model, last 24 hours", hourly, hours, "hour"),
        daily=daily is not None
        and charts.stacked("Tokens by tenant, last 30 days", daily, days, "day"),
        budgets=found["budgets"],
    )


async def _sums(
    connection: Connection, hours: tuple[datetime, datetime], days: tuple[datetime, datetime]
) -> tuple[Row, list[Row], list[Row]]:
    """Read what tiles, charts and outcomes show of one snapshot, so that they add up."""
    async with connection.transaction(isolation="repeatable_read", readonly=True):
        usage = Usage(connection)
        return (
            await usage.totals(*hours),
            await usage.series("model", *hours, unit="hour", most=SERIES),
            await usage.series("tenant", *days, most=SERIES),
        )
