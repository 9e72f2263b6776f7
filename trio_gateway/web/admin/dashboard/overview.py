"""The first page: what goes on now, and what the last day and month were like."""

from __future__ import annotations

from functools import partial

from quart import Blueprint, Response

from trio_gateway.services.usage import Usage, last_days, last_hours
from trio_gateway.web.admin.dashboard import charts
from trio_gateway.web.admin.dashboard.numbers import DAY, spoken, traffic
from trio_gateway.web.admin.dashboard.shell import books, page
from trio_gateway.web.admin.dashboard.together import POSTGRES, REDIS, together
from trio_gateway.web.admin.office import office

MONTH = 30  # days
SERIES = 7  # in one chart, and the rest
NEAR_END = 8  # budgets shown

blueprint = Blueprint("overview", __name__)


@blueprint.get("/")
async def overview() -> Response:
    """Read sums, reports and notices; nothing here grows with keys or the ledger."""
    here = office()
    usage, hours, days = Usage(here.postgres), last_hours(DAY), last_days(MONTH)
    found, missing = await together(
        traffic=(REDIS, partial(traffic, here)),
        totals=(POSTGRES, partial(usage.totals, *hours)),
        hourly=(POSTGRES, partial(usage.series, "model", *hours, unit="hour", most=SERIES)),
        daily=(POSTGRES, partial(usage.series, "tenant", *days, most=SERIES)),
        budgets=(POSTGRES, partial(books().notices.current, NEAR_END)),
    )
    hourly, daily = found["hourly"], found["daily"]
    return await page(
        "overview.html",
        503 if missing else 200,
        missing=missing,
        now=found["traffic"],
        day=None if found["totals"] is None else spoken(found["totals"]),
        outcomes=found["totals"] and found["totals"]["outcomes"],
        hourly=hourly is not None
        and charts.stacked("Tokens by model, last 24 hours", hourly, hours, "hour"),
        daily=daily is not None
        and charts.stacked("Tokens by tenant, last 30 days", daily, days, "day"),
        budgets=found["budgets"],
    )
