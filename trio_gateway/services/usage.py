"""What was used, from the sums that grow with the ledger: no question here scans a ledger.

Hours and days are UTC's. Sums by the hour are kept for the last weeks, those by the day for ever.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from collections.abc import Mapping

    from trio_gateway.clients.postgres import Postgres

By = Literal["model", "tenant", "outcome"]
Unit = Literal["hour", "day"]
Row = dict[str, Any]

_SUMS = ("requests", "failures", "prompt_tokens", "completion_tokens", "charged_tokens")
_BUCKETS = (100, 300, 1000, 3000, 10_000)  # milliseconds
_TTFT = ("ttft_count", *(f"ttft_{edge}" for edge in _BUCKETS))
_TOTALS = f"""
SELECT {", ".join(f"coalesce(sum({name}), 0)::bigint AS {name}" for name in (*_SUMS, *_TTFT))},
    coalesce(sum(ttft_ms), 0)::float8 AS ttft_ms
FROM gateway.usage_hourly WHERE hour >= $1 AND hour < $2 AND ($3::text IS NULL OR tenant_id = $3)
"""  # noqa: S608 - constants alone
_OUTCOMES = """
SELECT outcome, sum(requests)::bigint AS requests FROM gateway.usage_hourly
WHERE hour >= $1 AND hour < $2 AND ($3::text IS NULL OR tenant_id = $3)
GROUP BY outcome ORDER BY 2 DESC, 1
"""
# Everybody past the `most` greatest is summed as one, named null.
_SERIES = """
WITH found AS (
    SELECT {at} AS at, {group} AS name, {sums}
    FROM gateway.{table} WHERE {at} >= $1 AND {at} < $2 AND ($3::text IS NULL OR tenant_id = $3)
    GROUP BY 1, 2
), great AS (
    SELECT name FROM found GROUP BY name ORDER BY sum(charged_tokens) DESC, sum(requests) DESC, name
    LIMIT $4
)
SELECT f.at, CASE WHEN g.name IS NULL THEN NULL ELSE f.name END AS name, {again}
FROM found f LEFT JOIN great g ON g.name = f.name GROUP BY 1, 2 ORDER BY 1, 2
"""
_NAMES = "SELECT id, name FROM gateway.tenants WHERE id = ANY($1::text[])"


class Usage:
    """Errors raised: StoreUnavailable, NotMigrated."""

    def __init__(self, postgres: Postgres) -> None:
        """Nothing is read yet."""
        self._postgres = postgres

    async def totals(self, since: datetime, until: datetime, tenant_id: str | None = None) -> Row:
        """Sum whole hours from `since` up to `until`, within the last weeks.

        `ttft_p50_ms` and `ttft_p95_ms` are read off five steps and so only roughly right; None
        where no call had a first token. `outcomes` maps each outcome to its requests.
        """
        row = await self._postgres.fetch_one(_TOTALS, since, until, tenant_id)
        sums = dict(row) if row else {}
        outcomes = await self._postgres.fetch(_OUTCOMES, since, until, tenant_id)
        return {
            **{name: sums[name] for name in _SUMS},
            "ttft_p50_ms": percentile(sums, 0.5),
            "ttft_p95_ms": percentile(sums, 0.95),
            "outcomes": {each["outcome"]: each["requests"] for each in outcomes},
        }

    async def series(
        self,
        by: By,
        since: datetime,
        until: datetime,
        *,
        unit: Unit = "day",
        tenant_id: str | None = None,
        most: int = 8,
    ) -> list[Row]:
        """Return rows of `at` (a date, or the instant of an hour), `name` and five sums.

        `name` is a model, an outcome or a tenant's id, with the tenant's name as `label`; None is
        everything but the `most` greatest.
        """
        rows = await self._postgres.fetch(_query(by, unit), since, until, tenant_id, most)
        labels: Mapping[str, str] = {}
        if by == "tenant":
            ids = list({row["name"] for row in rows if row["name"] is not None})
            labels = {row["id"]: row["name"] for row in await self._postgres.fetch(_NAMES, ids)}
        return [{**row, "label": labels.get(row["name"] or "", row["name"])} for row in rows]


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


def _query(by: By, unit: Unit) -> str:
    column = "hour" if unit == "hour" else "day"
    return _SERIES.format(
        at=column,
        group="tenant_id" if by == "tenant" else by,
        table=f"usage_{'hourly' if unit == 'hour' else 'daily'}",
        sums=", ".join(f"sum({name}) AS {name}" for name in _SUMS),
        again=", ".join(f"sum(f.{name})::bigint AS {name}" for name in _SUMS),
    )
