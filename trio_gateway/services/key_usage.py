"""What keys are charged, from the sums by the day that their budgets rest on; and their last call.

`gateway.spend` has tokens alone, and keeps them for ever. Days are UTC's.
"""

from __future__ import annotations

from datetime import UTC
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Collection
    from datetime import date, datetime

    from trio_gateway.clients.postgres import Postgres

Row = dict[str, Any]

# Everybody past the `most` greatest is summed as one, named null.
_SERIES = """
WITH found AS MATERIALIZED (
    SELECT s.period_start AS at, k.id AS name, s.charged
    FROM gateway.api_keys k CROSS JOIN LATERAL (
        SELECT period_start, charged FROM gateway.spend
        WHERE scope = 'k:' || k.id AND period_start >= $2 AND period_start < $3
    ) s WHERE k.tenant_id = $1
), great AS (
    SELECT name FROM found GROUP BY name ORDER BY sum(charged) DESC, name LIMIT $4
)
SELECT f.at, g.name, sum(f.charged)::bigint AS charged_tokens
FROM found f LEFT JOIN great g ON g.name = f.name GROUP BY 1, 2 ORDER BY 1, 2
"""
_OF_ONE = """
SELECT period_start AS at, $1::text AS name, charged AS charged_tokens FROM gateway.spend
WHERE scope = 'k:' || $1 AND period_start >= $2 AND period_start < $3 ORDER BY 1
"""
_NAMES = "SELECT id, name FROM gateway.api_keys WHERE id = ANY($1::text[])"
# The ledger's index leads to a key's last row; where it is past retention, a day is left.
_LAST = """
SELECT g.key_id, l.started_at, s.period_start FROM unnest($1::text[]) AS g (key_id)
LEFT JOIN LATERAL (
    SELECT started_at FROM gateway.ledger WHERE key_id = g.key_id ORDER BY started_at DESC LIMIT 1
) l ON true
LEFT JOIN LATERAL (
    SELECT period_start FROM gateway.spend WHERE scope = 'k:' || g.key_id
    ORDER BY period_start DESC LIMIT 1
) s ON l.started_at IS NULL
"""


class KeyUsage:
    """Errors raised: StoreUnavailable, NotMigrated."""

    def __init__(self, postgres: Postgres) -> None:
        """Nothing is read yet."""
        self._postgres = postgres

    async def series(
        self, tenant_id: str, since: datetime, until: datetime, *, most: int = 8
    ) -> list[Row]:
        """Return rows of `at` (a date), `name`, `label` and `charged_tokens` of a tenant's keys.

        `name` is a key's id, `label` its name if it has one; None is all but the `most` greatest.
        """
        rows = await self._postgres.fetch(_SERIES, tenant_id, *_days(since, until), most)
        ids = list({row["name"] for row in rows if row["name"] is not None})
        found = await self._postgres.fetch(_NAMES, ids)
        labels = {row["id"]: row["name"] or row["id"] for row in found}
        return [{**row, "label": labels.get(row["name"] or "", row["name"])} for row in rows]

    async def of_one(self, key_id: str, since: datetime, until: datetime) -> list[Row]:
        """Return such rows of one key, without a label."""
        rows = await self._postgres.fetch(_OF_ONE, key_id, *_days(since, until))
        return [dict(row) for row in rows]

    async def last_used(self, key_ids: Collection[str]) -> dict[str, datetime | date]:
        """Return when the last call of each key began that is over, by the ids of those used.

        Past the ledger's retention it is the day on which the key was last charged.
        """
        rows = await self._postgres.fetch(_LAST, list(key_ids))
        found = {row["key_id"]: row["started_at"] or row["period_start"] for row in rows}
        return {key_id: at for key_id, at in found.items() if at is not None}


def _days(since: datetime, until: datetime) -> tuple[date, date]:
    return since.astimezone(UTC).date(), until.astimezone(UTC).date()
