"""What was used, from the sums that grow with the ledger: no question here scans a ledger.

Hours and days are UTC's. Sums by the hour are kept for the last weeks, those by the day for ever.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Literal

from trio_gateway.services.tenant_names import tenant_names

if TYPE_CHECKING:
    from collections.abc import Mapping

    from trio_gateway.clients.postgres import Reads

By = Literal["model", "tenant", "outcome"]
Unit = Literal["hour", "day"]
Row = dict[str, Any]

REST = "all others"
_SUMS = ("requests", "failures", "prompt_tokens", "completion_tokens", "charged_tokens")
_BUCKETS = (10, 30, 100, 300, 1000, 3000, 10_000)  # milliseconds
_TTFT = ("ttft_count", *(f"ttft_{edge}" for edge in _BUCKETS))
_ALL = ", ".join(f"sum({name})::float8 AS {name}" for name in (*_SUMS, *_TTFT))
# Over all tenants sums are read from few rows, however many tenants there are.
_OUTCOMES = f"""
SELECT name, {_ALL} FROM gateway.usage_totals
WHERE unit = 'hour' AND kind = 'outcome' AND at >= $1 AND at < $2 GROUP BY name
"""  # noqa: S608 - constants alone
_OUTCOMES_OF_ONE = f"""
SELECT outcome AS name, {_ALL} FROM gateway.usage_hourly
WHERE hour >= $1 AND hour < $2 AND tenant_id = $3 GROUP BY outcome
"""  # noqa: S608 - constants alone
_TOTALS = "gateway.usage_totals WHERE unit = '{unit}' AND kind = '{by}' AND $3::text IS NULL AND "
_TOTALS_OF_ONE = "gateway.{table} WHERE tenant_id = $3 AND "
# Everybody past the `most` greatest is summed as one, named null. It reads its rows twice, which
# takes half the time of reading them once and summing by every name and instant in between.
_SERIES = """
WITH great AS MATERIALIZED (
    SELECT {by} AS name FROM {rows} GROUP BY 1
    ORDER BY sum(charged_tokens) DESC, sum(requests) DESC, 1 LIMIT $4
)
SELECT {shown} AS at, g.name, {sums}
FROM (SELECT * FROM {rows}) AS f LEFT JOIN great AS g ON g.name = f.{by}
GROUP BY f.{column}, g.name ORDER BY 1, 2
"""


class Usage:
    """Errors raised: StoreUnavailable, NotMigrated."""

    def __init__(self, reads: Reads) -> None:
        """Nothing is read yet."""
        self._reads = reads

    async def totals(self, since: datetime, until: datetime, tenant_id: str | None = None) -> Row:
        """Sum whole hours from `since` up to `until`, within the last weeks.

        `ttft_p50_ms` and `ttft_p95_ms` are read off seven steps and so only roughly right; None
        where no call had a first token. `outcomes` maps each outcome to its requests, the
        greatest first.
        """
        if tenant_id is None:
            rows = await self._reads.fetch(_OUTCOMES, since, until)
        else:
            rows = await self._reads.fetch(_OUTCOMES_OF_ONE, since, until, tenant_id)
        sums = {name: int(sum(row[name] for row in rows)) for name in (*_SUMS, *_TTFT)}
        greatest = sorted(rows, key=lambda row: (-row["requests"], row["name"]))
        return {
            **{name: sums[name] for name in _SUMS},
            "ttft_p50_ms": percentile(sums, 0.5),
            "ttft_p95_ms": percentile(sums, 0.95),
            "outcomes": {row["name"]: int(row["requests"]) for row in greatest},
        }

    async def series(
        self,
        by: By,
        since: datetime,
        until: datetime,
        *,
        unit: Unit = "day",
        tenant_id: str | None = None,
        most: int | None = 8,
    ) -> list[Row]:
        """Return rows of `at` (a date, or the instant of an hour), `name` and five sums.

        `name` is a model, an outcome or a tenant's id, with the tenant's name as `label`; None is
        everything but the `most` greatest, labeled as such. Where `most` is None each has rows.
        """
        query = series_query(by, unit, one=tenant_id is not None)
        rows = await self._reads.fetch(query, since, until, tenant_id, most)
        labels: Mapping[str, str] = {}
        if by == "tenant":
            ids = {row["name"] for row in rows if row["name"] is not None}
            labels = await tenant_names(self._reads, ids)
        return [
            {**row, "label": REST if row["name"] is None else labels.get(row["name"], row["name"])}
            for row in rows
        ]


def last_hours(hours: int, now: datetime | None = None) -> tuple[datetime, datetime]:
    """Return the bounds of the last `hours` hours, the one that runs included."""
    now = now or datetime.now(UTC)
    until = now.replace(minute=0, second=0, microsecond=0) + timedelta(hours=1)
    return until - timedelta(hours=hours), until


def last_days(days: int, now: datetime | None = None) -> tuple[datetime, datetime]:
    """Return the bounds of the last `days` UTC days, today included."""
    now = now or datetime.now(UTC)
    until = now.replace(hour=0, minute=0, second=0, microsecond=0) + timedelta(days=1)
    return until - timedelta(days=days), until


def percentile(sums: Mapping[str, Any], share: float) -> float | None:
    """Read a percentile in milliseconds off the steps, straight between two of them."""
    wanted = sums["ttft_count"] * share
    if not wanted:
        return None
    below, floor = 0, 0.0
    for edge in _BUCKETS:
        count: int = sums[f"ttft_{edge}"]
        if count >= wanted:
            return float(floor + (edge - floor) * (wanted - below) / (count - below))
        below, floor = count, edge
    return floor


def series_query(by: By, unit: Unit, *, one: bool) -> str:
    """Write the query of a series: of `one` tenant, or of all."""
    hourly = unit == "hour"
    column, name = "at", "name"
    if one:
        column, name = str(unit), "tenant_id" if by == "tenant" else str(by)
        table = _TOTALS_OF_ONE.format(table="usage_hourly" if hourly else "usage_daily")
    else:
        table = _TOTALS.format(unit=unit, by=by)
    return _SERIES.format(
        rows=f"{table}{column} >= $1 AND {column} < $2",
        by=name,
        column=column,
        shown=f"f.{column}" if one or hourly else "(f.at AT TIME ZONE 'UTC')::date",
        sums=", ".join(f"sum(f.{each})::bigint AS {each}" for each in _SUMS),
    )
