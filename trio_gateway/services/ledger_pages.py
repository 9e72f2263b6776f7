"""The ledger row by row, newest first: each page is read off an index, however long the ledger.

Only a search by model or outcome has no index. It visits the hours, or long ago the days, in
which the sums say that there is something to find, and no other.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from trio_gateway.services.account_rows import storable
from trio_gateway.services.ledger_slots import slots

if TYPE_CHECKING:
    from datetime import datetime

    from trio_gateway.clients.postgres import Connection, Postgres

Row = dict[str, Any]
Place = tuple["datetime", str]  # started_at and request_id of a row

# Names are those of today; what is gone has none.
_NAMED = """
SELECT l.*, t.name AS tenant, k.name AS key FROM ({page}) l
LEFT JOIN gateway.tenants t ON t.id = l.tenant_id
LEFT JOIN gateway.api_keys k ON k.id = l.key_id
ORDER BY l.started_at DESC, l.request_id DESC
"""
_PAGE = """
SELECT * FROM gateway.ledger WHERE {tests} ORDER BY started_at DESC, request_id DESC LIMIT {limit:d}
"""
# The latest slot first, so that a page which is full has read no further.
_BY_SLOT = """
SELECT l.* FROM (SELECT at FROM ({slots}) s ORDER BY at DESC) slot CROSS JOIN LATERAL ({page}) l
ORDER BY slot.at DESC, l.started_at DESC, l.request_id DESC LIMIT {limit:d}
"""
_KEYS = """
SELECT l.key_id, k.name AS key, l.tenant_id, t.name AS tenant, l.requests, l.failures,
    l.prompt_tokens, l.completion_tokens, l.charged_tokens
FROM (
    SELECT key_id, tenant_id, count(*) AS requests,
        count(*) FILTER (WHERE gateway.is_failure(status_code, outcome)) AS failures,
        sum(prompt_tokens)::bigint AS prompt_tokens,
        sum(completion_tokens)::bigint AS completion_tokens,
        sum(charged_tokens)::bigint AS charged_tokens
    FROM gateway.ledger WHERE {tests} GROUP BY 1, 2
    ORDER BY sum(charged_tokens) DESC, 3 DESC, 1 LIMIT {limit:d}
) l
LEFT JOIN gateway.tenants t ON t.id = l.tenant_id
LEFT JOIN gateway.api_keys k ON k.id = l.key_id
ORDER BY l.charged_tokens DESC, l.requests DESC, l.key_id
"""
_COLUMNS = ("request_id", "tenant_id", "key_id", "model", "outcome", "batch_id")
_INDEXED = ("request_id", "key_id", "batch_id")  # each of few rows, in whatever days they are


@dataclass(frozen=True, slots=True, kw_only=True)
class LedgerFilter:
    """Which rows are wanted; `until` is not among them. Ids, not names."""

    request_id: str | None = None
    tenant_id: str | None = None
    key_id: str | None = None
    model: str | None = None
    outcome: str | None = None
    batch_id: str | None = None
    since: datetime | None = None
    until: datetime | None = None


class LedgerPages:
    """Errors raised: StoreUnavailable, NotMigrated."""

    def __init__(self, postgres: Postgres) -> None:
        """Nothing is read yet."""
        self._postgres = postgres

    async def listing(
        self, wanted: LedgerFilter, limit: int = 100, before: Place | None = None
    ) -> list[Row]:
        """Return rows of `gateway.ledger`, the newest first, with `tenant` and `key` by name.

        `before` is the place of the row that the last page ended with.
        """
        return await self._postgres.run(_listing, wanted, limit, before)

    async def by_key(self, wanted: LedgerFilter, limit: int = 1000) -> list[Row]:
        """Sum by key, the greatest first. It reads every row: bound it by tenant and time."""
        values: list[Any] = []
        query = _KEYS.format(tests=_tests(wanted, values), limit=limit)
        return [dict(row) for row in await self._postgres.fetch(query, *values)]


async def _listing(
    connection: Connection, wanted: LedgerFilter, limit: int, before: Place | None
) -> list[Row]:
    values: list[Any] = []
    tests = _tests(wanted, values)
    if before is not None:
        tests += f" AND (started_at, request_id) < (${len(values) + 1}, ${len(values) + 2})"
        values += [before[0], storable(before[1])]
    searching = wanted.model is not None or wanted.outcome is not None
    if searching and all(getattr(wanted, column) is None for column in _INDEXED):
        found, inside = slots(wanted, before, values)
        inner = _PAGE.format(tests=f"{tests} AND {inside}", limit=limit)
        page = _BY_SLOT.format(slots=found, page=inner, limit=limit)
    else:
        page = _PAGE.format(tests=tests, limit=limit)
    return [dict(row) for row in await connection.fetch(_NAMED.format(page=page), *values)]


def _tests(wanted: LedgerFilter, values: list[Any]) -> str:
    """Return the condition, and put its values behind those that are there."""
    tests = ["true"]
    for column in _COLUMNS:
        value = getattr(wanted, column)
        if value is not None:
            values.append(storable(value))
            tests.append(f"{column} = ${len(values)}")
    for test, instant in (("started_at >=", wanted.since), ("started_at <", wanted.until)):
        if instant is not None:
            values.append(instant)
            tests.append(f"{test} ${len(values)}")
    return " AND ".join(tests)
