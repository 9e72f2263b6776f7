"""When the ledger has rows of a model or an outcome, by the sums: what else need not be read.

Those are hours as long as sums by the hour are kept, and days beyond.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from trio_gateway.services.account_rows import storable

if TYPE_CHECKING:
    from trio_gateway.services.ledger_pages import LedgerFilter, Place

HOURS_KEPT = timedelta(days=35)  # of sums by the hour; those by the day stay
HOUR = timedelta(hours=1)
# Over all tenants sums are read from few rows, however many tenants there are.
_TOTALS = """
SELECT at FROM gateway.usage_totals
WHERE unit = '{unit}' AND kind = '{kind}' AND name = ${name} AND {bounds} GROUP BY at
"""
_HOURS_OF_ONE = """
SELECT hour AS at FROM gateway.usage_hourly WHERE {equal} AND {bounds} GROUP BY hour
"""
_DAYS_OF_ONE = """
SELECT day::timestamp AT TIME ZONE 'UTC' AS at FROM gateway.usage_daily
WHERE {equal} AND {bounds} GROUP BY day
"""
_INSIDE = "started_at >= slot.at AND started_at < slot.at + interval '{hours} hours'"


def slots(wanted: LedgerFilter, before: Place | None, values: list[Any]) -> tuple[str, str]:
    """Return a query of instants `at`, and what is true of rows in the `slot` that begins there.

    Its values are put behind those that are there.
    """
    kept = datetime.now(UTC) - HOURS_KEPT + HOUR
    hourly = wanted.since is not None and wanted.since >= kept
    inside = _INSIDE.format(hours=1 if hourly else 24)
    if wanted.tenant_id is None:
        unit = "hour" if hourly else "day"
        bounds = _bounds(wanted, before, values, "at", hourly=hourly)
        found = [
            _TOTALS.format(unit=unit, kind=kind, name=_place(name, values), bounds=bounds)
            for kind, name in (("model", wanted.model), ("outcome", wanted.outcome))
            if name is not None
        ]
        return " INTERSECT ".join(found), inside
    query, column = (_HOURS_OF_ONE, "hour") if hourly else (_DAYS_OF_ONE, "day")
    named = {"tenant_id": wanted.tenant_id, "model": wanted.model, "outcome": wanted.outcome}
    equal = " AND ".join(
        f"{name} = ${_place(value, values)}" for name, value in named.items() if value is not None
    )
    bounds = _bounds(wanted, before, values, column, hourly=hourly)
    return query.format(equal=equal, bounds=bounds), inside


def _bounds(
    wanted: LedgerFilter, before: Place | None, values: list[Any], column: str, *, hourly: bool
) -> str:
    """Return the condition on the beginnings of what can hold rows from `since` to the latest."""
    latest = [at for at in (wanted.until, before and before[0]) if at is not None]
    tests = ["true"]
    for test, at in ((">=", wanted.since), ("<=", min(latest, default=None))):
        if at is not None:
            start = at.astimezone(UTC).replace(minute=0, second=0, microsecond=0)
            start = start if hourly else start.replace(hour=0)
            values.append(start.date() if column == "day" else start)
            tests.append(f"{column} {test} ${len(values)}")
    return " AND ".join(tests)


def _place(value: str, values: list[Any]) -> int:
    values.append(storable(value))
    return len(values)
