"""`ledger verify`: the rows against the daily sums, and the sums against the live counters.

Right while calls come and go: rows and sums are compared in one statement, which sees them at
one instant, and a tenant's counters are read in one step before the sums. Of what the sums
already hold by then, exactly the rows of holds open in that step and of calls begun after it
are not in the counters yet.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import trio

from trio_gateway.services.quota.snapshot import take_snapshot, tenants_with_account

if TYPE_CHECKING:
    from collections.abc import Sequence

    from trio_gateway.clients.postgres import Postgres
    from trio_gateway.clients.redis import Redis
    from trio_gateway.services.quota.snapshot import Snapshot

STATEMENT_LIMIT = 600.0  # seconds; a month may have tens of millions of rows
RECHECKS = 3  # looks at a tenant before a difference is one: clocks may step
PAUSE = 0.05  # seconds between them
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

# Whole months, which retention drops in one piece; rows older than the oldest may be gone.
MONTHS = """
SELECT to_date(right(relname, 6), 'YYYYMM') AS first
FROM pg_inherits JOIN pg_class ON pg_class.oid = inhrelid
WHERE inhparent = 'gateway.ledger'::regclass AND relname ~ '^ledger_[0-9]{6}$'
ORDER BY first
"""
SUMS = """
WITH booked AS (
    SELECT tenant_id, key_id, (started_at AT TIME ZONE 'UTC')::date AS day,
        sum(charged_tokens) AS charged
    FROM gateway.ledger
    WHERE started_at >= $1::date::timestamp AT TIME ZONE 'UTC'
        AND started_at < $2::date::timestamp AT TIME ZONE 'UTC'
    GROUP BY 1, 2, 3
), summed AS (
    SELECT scope, day, sum(charged) AS charged
    FROM booked, LATERAL (VALUES ('t:' || tenant_id), ('k:' || key_id)) AS s (scope)
    GROUP BY scope, day
), spent AS (
    SELECT scope, period_start AS day, charged FROM gateway.spend
    WHERE period_start >= $1 AND period_start < $2
), compared AS (
    SELECT scope, day, coalesce(summed.charged, 0) AS rows, coalesce(spent.charged, 0) AS sum
    FROM summed FULL JOIN spent USING (scope, day)
)
SELECT (SELECT count(*) FROM compared) AS checked, scope, day, rows, sum
FROM (VALUES (1)) AS always (one)
LEFT JOIN compared ON CASE WHEN $3 THEN rows > sum ELSE rows <> sum END
ORDER BY scope, day
"""
REPEATED = """
SELECT request_id, count(*) AS rows FROM gateway.ledger
GROUP BY request_id HAVING count(*) > 1 ORDER BY request_id
"""
COUNTED = """
SELECT (
    SELECT coalesce(sum(charged), 0) FROM gateway.spend AS s
    WHERE s.scope = w.spend_scope AND s.period_start >= w.first AND s.period_start < w.until
) - (
    SELECT coalesce(sum(charged_tokens), 0) FROM gateway.ledger AS l
    WHERE l.tenant_id = $5 AND l.request_id = ANY($6) AND l.started_at < $7
      AND (w.scope = 't' OR l.key_id = substr(w.scope, 3))
      AND (l.started_at AT TIME ZONE 'UTC')::date >= w.first
      AND (l.started_at AT TIME ZONE 'UTC')::date < w.until
) - (
    SELECT coalesce(sum(charged_tokens), 0) FROM gateway.ledger AS l
    WHERE l.tenant_id = $5 AND l.started_at >= $7
      AND (w.scope = 't' OR l.key_id = substr(w.scope, 3))
      AND (l.started_at AT TIME ZONE 'UTC')::date >= w.first
      AND (l.started_at AT TIME ZONE 'UTC')::date < w.until
) AS spent
FROM unnest($1::text[], $2::text[], $3::date[], $4::date[])
    WITH ORDINALITY AS w (scope, spend_scope, first, until, number)
ORDER BY number
"""


@dataclass(slots=True)
class Comparison:
    """What has been found so far."""

    checked: int = 0
    holds_open: int = 0
    differences: list[dict[str, Any]] = field(default_factory=list)


async def verify(postgres: Postgres, redis: Redis) -> dict[str, Any]:
    """Compare the books: `{"ok", "checked", "holds_open", "differences"}`.

    A difference has a `kind`: `sum` (rows of a day against its daily sum, per scope), `counter`
    (a warm tenant's live counter against the sums), or `row` (a request with several rows).
    Cold tenants have nothing to compare: their next call counts anew. Raises StoreUnavailable.
    """
    found = Comparison()
    await postgres.run(_compare_sums, found)
    for tenant_id in sorted(await tenants_with_account(redis)):
        await _compare_counters(postgres, redis, tenant_id, found)
    return {
        "ok": not found.differences,
        "checked": found.checked,
        "holds_open": found.holds_open,
        "differences": found.differences,
    }


async def _compare_sums(connection: Any, found: Comparison) -> None:
    months = [record["first"] for record in await connection.fetch(MONTHS)]
    edges = [date.min, *months, date.max]
    for first, until in pairwise(edges):
        dropped = first == date.min
        records = await connection.fetch(SUMS, first, until, dropped, timeout=STATEMENT_LIMIT)
        found.checked += records[0]["checked"]
        found.differences += [
            {
                "kind": "sum",
                "scope": record["scope"],
                "day": record["day"].isoformat(),
                "rows": int(record["rows"]),
                "sum": int(record["sum"]),
            }
            for record in records
            if record["scope"] is not None
        ]
    for record in await connection.fetch(REPEATED, timeout=STATEMENT_LIMIT):
        found.differences.append({"kind": "row", **record})


async def _compare_counters(
    postgres: Postgres, redis: Redis, tenant_id: str, found: Comparison
) -> None:
    for _ in range(RECHECKS):
        snapshot = await take_snapshot(redis, tenant_id)
        differences = await _differences(postgres, tenant_id, snapshot)
        if not differences:
            break
        await trio.sleep(PAUSE)
    found.holds_open += len(snapshot.open_holds)
    found.checked += 2 * len(snapshot.spent) if snapshot.warm else 0
    found.differences += differences


async def _differences(
    postgres: Postgres, tenant_id: str, snapshot: Snapshot
) -> list[dict[str, Any]]:
    if not snapshot.warm or not snapshot.spent:
        return []
    expected = await _expected(postgres, tenant_id, snapshot)
    compared = [
        ("spent", counter, expected[counter], units) for counter, units in snapshot.spent.items()
    ] + [
        ("held", counter, snapshot.held[counter], units)
        for counter, units in snapshot.counted_held.items()
    ]
    return [
        {
            "kind": "counter",
            "counter": name,
            "scope": _spend_scope(tenant_id, scope),
            "period": period,
            "expected": expected_units,
            "counted": units,
        }
        for name, (scope, period), expected_units, units in compared
        if expected_units != units
    ]


async def _expected(
    postgres: Postgres, tenant_id: str, snapshot: Snapshot
) -> dict[tuple[str, str], int]:
    counters = list(snapshot.spent)
    spans = [_span(label) for _, label in counters]
    records: Sequence[Any] = await postgres.fetch(
        COUNTED,
        [scope for scope, _ in counters],
        [_spend_scope(tenant_id, scope) for scope, _ in counters],
        [first for first, _ in spans],
        [until for _, until in spans],
        tenant_id,
        list(snapshot.open_holds),
        EPOCH + timedelta(microseconds=snapshot.at_us),
    )
    return {
        counter: int(record["spent"]) for counter, record in zip(counters, records, strict=True)
    }


def _spend_scope(tenant_id: str, scope: str) -> str:
    return f"t:{tenant_id}" if scope == "t" else scope


def _span(label: str) -> tuple[date, date]:
    """Return the first day of a period and the first day after it."""
    if label == "total":
        return date.min, date.max
    if len(label) == len("2030-01-31"):
        first = date.fromisoformat(label)
        return first, first + timedelta(days=1)
    first = date.fromisoformat(f"{label}-01")
    return first, (first + timedelta(days=32)).replace(day=1)
