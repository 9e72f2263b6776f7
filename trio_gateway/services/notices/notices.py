"""Notices of budgets, as PostgreSQL wrote them: reading only."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from trio_gateway.services.account_rows import Refused, Row, storable
from trio_gateway.services.instants import check_instant
from trio_gateway.services.notices.messages import began

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime

    from trio_gateway.clients.postgres import Connection, Postgres

MOST = 1000  # rows of one answer
CANDIDATES = 5000  # the latest of a period and threshold that `current` looks at
THRESHOLDS = (80, 100)  # per cent
_STATES = ("waiting", "delivered", "given_up")
_NAMED = f"""
SELECT n.id, n.at, n.tenant_id, t.name AS tenant, n.key_id, k.name AS key, n.threshold, n.period,
    n.period_start, n.budget, n.spent, {", ".join(f"d.{state}" for state in _STATES)}
FROM noticed n
LEFT JOIN gateway.tenants t ON t.id = n.tenant_id
LEFT JOIN gateway.api_keys k ON k.id = n.key_id
CROSS JOIN LATERAL (
    SELECT {", ".join(f"count(*) FILTER (WHERE state = '{state}') AS {state}" for state in _STATES)}
    FROM gateway.deliveries WHERE notice_id = n.id
) d ORDER BY n.id DESC
"""  # noqa: S608 - constants alone
# Of each running period first the budgets that are spent. What was noticed at a smaller budget than
# that of now, or for another kind of period, is over. What was noticed at a larger one, as a while
# with an increase, is near its end all the more; of several the nearest counts. 80 per cent is
# listed where nothing stands at 100. By these settings every step walks an index and stops when
# there is enough: a planner that knows nothing of how many will match prefers to join and sort all
# there are.
SETTINGS = "; ".join(
    f"SET LOCAL enable_{way} = off"
    for way in ("seqscan", "bitmapscan", "hashjoin", "mergejoin", "sort")
)
CURRENT = f"""
SELECT n.id, n.at, n.tenant_id, n.tenant, n.key_id, n.key, CASE WHEN s.spent >= n.budget THEN 100
    ELSE n.threshold END AS threshold, n.period, n.period_start, n.budget, s.spent FROM (
    VALUES ('day', (now() AT TIME ZONE 'UTC')::date),
        ('month', date_trunc('month', now() AT TIME ZONE 'UTC')::date),
        ('total', '-infinity'::date)
) AS p (period, first)
CROSS JOIN (VALUES (100), (80)) AS h (threshold)
CROSS JOIN LATERAL (
    SELECT n.id, n.at, n.scope, n.tenant_id, t.name AS tenant, n.key_id, k.name AS key,
        n.threshold, n.period, n.period_start, b.budget
    FROM (
        SELECT n.*, -n.id AS newest FROM gateway.budget_notices n
        WHERE n.period_start = p.first AND n.threshold = h.threshold AND n.id > 0
            AND n.period = p.period
        ORDER BY -n.id LIMIT {CANDIDATES}
    ) n
    LEFT JOIN gateway.tenants t ON t.id = n.tenant_id
    LEFT JOIN gateway.api_keys k ON k.id = n.key_id
    CROSS JOIN LATERAL (
        SELECT CASE WHEN n.key_id IS NULL
            THEN gateway.effective_budget(t.budget, t.budget_extra, t.budget_extra_until)
            ELSE gateway.effective_budget(k.budget, k.budget_extra, k.budget_extra_until)
            END AS budget
    ) b
    WHERE CASE WHEN n.key_id IS NULL THEN t.budget_period ELSE k.budget_period END = n.period
        AND b.budget BETWEEN 1 AND n.budget
        AND (SELECT count(*) FROM gateway.budget_notices f
            WHERE f.scope = n.scope AND f.period = n.period AND f.period_start = n.period_start
                AND f.threshold = n.threshold AND f.budget >= b.budget AND f.budget < n.budget) = 0
        AND (n.threshold = 100 OR (SELECT count(*) FROM gateway.budget_notices f
            WHERE f.scope = n.scope AND f.period = n.period AND f.period_start = n.period_start
                AND f.threshold = 100 AND f.budget >= b.budget) = 0)
    ORDER BY n.newest LIMIT $1
) n
CROSS JOIN LATERAL (
    SELECT least(coalesce(sum(charged), 0), 9223372036854775807)::bigint AS spent
    FROM gateway.spend WHERE scope = n.scope AND period_start >= n.period_start
) s
ORDER BY threshold DESC, n.id DESC LIMIT $1
"""  # noqa: S608 - constants alone


class Notices:
    """Errors raised: Refused, StoreUnavailable, NotMigrated.

    Rows have id, at, tenant_id, tenant, key_id, key (both null for the tenant's own budget),
    threshold (per cent), period, period_start (null for a total), budget and spent (tokens).
    """

    def __init__(self, postgres: Postgres) -> None:
        """Nothing is read yet."""
        self._postgres = postgres

    async def listing(
        self,
        tenant: str | None = None,
        threshold: int | None = None,
        since: datetime | None = None,
        before: int | None = None,
        limit: int = 100,
    ) -> list[Row]:
        """Return notices, the latest first; `before` is the id that the last page ended with.

        `spent` is what it was then; `deliveries` counts those waiting, delivered and given up.
        """
        _check_limit(limit)
        if threshold not in {None, *THRESHOLDS}:
            raise Refused("must be 80 or 100", "threshold")
        check_instant(since, "since")
        return await self._postgres.run(
            self._list, {"threshold": threshold, "since": since, "before": before}, tenant, limit
        )

    async def current(self, limit: int = 100) -> list[Row]:
        """Return the budgets that are near their end now, first those that are spent.

        `spent` is what it is now.
        """
        _check_limit(limit)
        return await self._postgres.transact(_current, limit)

    async def _list(
        self, connection: Connection, wanted: Mapping[str, Any], tenant: str | None, limit: int
    ) -> list[Row]:
        tests = {"threshold": "threshold =", "since": "at >=", "before": "id <"}
        conditions, values = ["true"], []
        if tenant is not None:
            # A tenant that is gone may still be asked for by its id.
            owner = await connection.fetchval(
                "SELECT id FROM gateway.tenants WHERE id = $1 OR name = $1 ORDER BY id = $1 DESC",
                storable(tenant),
            )
            wanted = {**wanted, "tenant": owner or storable(tenant)}
            tests["tenant"] = "tenant_id ="
        for name, test in tests.items():
            if wanted[name] is not None:
                values.append(wanted[name])
                conditions.append(f"{test} ${len(values)}")
        rows = await connection.fetch(
            "WITH noticed AS (SELECT * FROM gateway.budget_notices"  # noqa: S608 - as above
            f" WHERE {' AND '.join(conditions)} ORDER BY id DESC LIMIT {limit:d}){_NAMED}",
            *values,
        )
        return [_plain(dict(row)) for row in rows]


async def _current(connection: Connection, limit: int) -> list[Row]:
    await connection.execute(SETTINGS)
    return [_plain(dict(row)) for row in await connection.fetch(CURRENT, limit)]


def _check_limit(limit: int) -> None:
    if not 1 <= limit <= MOST:
        raise Refused(f"must be 1 to {MOST}", "limit")


def _plain(row: Row) -> Row:
    row["period_start"] = began(row["period_start"])
    if "waiting" in row:
        row["deliveries"] = {state: row.pop(state) for state in _STATES}
    return row
