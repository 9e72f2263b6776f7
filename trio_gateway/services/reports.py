"""What was used, what was refused, and what operators did: reading only."""

from __future__ import annotations

import json
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Literal

from trio_gateway.services.account_rows import Refused, Row, find_tenant, storable
from trio_gateway.services.instants import check_instant
from trio_gateway.services.subjects import subjects_of
from trio_gateway.services.tenant_names import tenant_names

if TYPE_CHECKING:
    from datetime import datetime

    from trio_gateway.clients.postgres import Connection, Postgres

By = Literal["model", "key", "tenant", "outcome", "day"]

READ_LIMIT = 300.0  # seconds: a ledger may hold many millions of rows
SHARED_LONGEST = timedelta(minutes=5)  # identical refusals share a row for a minute
_GROUPS = {
    "model": ("model", "l.model"),
    "key": ("key_id", "l.key_id"),
    "tenant": ("tenant_id", "l.tenant_id"),
    "outcome": ("outcome", "l.outcome"),
    "day": ("day", "to_char(l.started_at AT TIME ZONE 'UTC', 'YYYY-MM-DD')"),
}
_ACTS = "SELECT * FROM gateway.admin_events WHERE {tests} ORDER BY id DESC LIMIT {limit:d}"
# A page of each subject off the index, which has not several in order.
_ACTS_OF = """
SELECT e.* FROM unnest(${place}::text[]) AS s (one) CROSS JOIN LATERAL ({each}) e
ORDER BY e.id DESC LIMIT {limit:d}
"""
# From one value to the next by the column's index, however many rows have each.
_SEEN = """
WITH RECURSIVE found AS (
    SELECT min({column}) AS seen FROM gateway.admin_events
    UNION ALL
    SELECT (SELECT min({column}) FROM gateway.admin_events WHERE {column} > found.seen)
    FROM found WHERE found.seen IS NOT NULL
)
SELECT seen FROM found WHERE seen IS NOT NULL LIMIT 200
"""
_THERE = "SELECT EXISTS (SELECT FROM gateway.audit_log WHERE id = $1)"
_SUMS = ("requests", "failures", "prompt_tokens", "completion_tokens", "charged_tokens")


class Reports:
    """Errors raised: Refused, NotFound, StoreUnavailable, NotMigrated."""

    def __init__(self, postgres: Postgres) -> None:
        """Nothing is read yet."""
        self._postgres = postgres

    async def usage(
        self,
        by: By = "model",
        tenant: str | None = None,
        key_id: str | None = None,
        since: datetime | None = None,
    ) -> list[Row]:
        """Sum the ledger by model, key, tenant, outcome or UTC day.

        Each row has the group's columns (`model`, `outcome`, `day`, `tenant_id` and `tenant`, or
        `key_id`, `key` and `tenant`), five sums and `outcomes`, a count for each outcome seen.
        """
        check_instant(since, "since")
        return await self._postgres.run(self._usage, by, tenant, key_id, since)

    async def refusals(
        self,
        since: datetime | None = None,
        tenant: str | None = None,
        limit: int = 100,
        before: int | None = None,
    ) -> list[Row]:
        """Return refusals before admission, the latest first.

        `before` is the id that the last page ended with.
        """
        check_instant(since, "since")
        return await self._postgres.run(self._refusals, since, tenant, limit, before)

    async def acts(
        self,
        since: datetime | None = None,
        limit: int = 100,
        before: int | None = None,
        subject: str | None = None,
        *,
        actor: str | None = None,
        action: str | None = None,
    ) -> list[Row]:
        """Return what operators changed, the latest first, with the rows before and after.

        `before` is the id that the last page ended with; `subject` is what was changed, by name or
        id, `actor` who did it, such as `admin:eve`, and `action` what it was, such as `key.revoke`.
        """
        check_instant(since, "since")
        tests, values = _tests(
            ("at >= {}", since),
            ("id < {}", before),
            ("actor = {}", actor and storable(actor)),
            ("action = {}", action and storable(action)),
        )
        rows = await self._postgres.run(self._acts, tests, values, subject, limit)
        return [{**row, "before": _parsed(row["before"]), "after": _parsed(row["after"])}
                for row in rows]  # fmt: skip

    async def actors(self) -> list[str]:
        """Return who is on record as having changed something, by name: some, if there are many."""
        return await self._seen("actor")

    async def actions(self) -> list[str]:
        """Return what is on record as having been done, by name."""
        return await self._seen("action")

    async def _seen(self, column: str) -> list[str]:
        rows = await self._postgres.fetch(_SEEN.format(column=column))
        return [row["seen"] for row in rows]

    async def _acts(
        self, connection: Connection, tests: str, values: list[Any], subject: str | None, limit: int
    ) -> list[Any]:
        if subject is None:
            return await connection.fetch(_ACTS.format(tests=tests, limit=limit), *values)
        subjects = await subjects_of(connection, subject)
        each = _ACTS.format(tests=f"{tests} AND subject = s.one", limit=limit)
        query = _ACTS_OF.format(place=len(values) + 1, each=each, limit=limit)
        return await connection.fetch(query, *values, subjects)

    async def _usage(
        self,
        connection: Connection,
        by: By,
        tenant: str | None,
        key_id: str | None,
        since: datetime | None,
    ) -> list[Row]:
        column, expression = _GROUPS[by]
        owner = None if tenant is None else (await find_tenant(connection, tenant))["id"]
        tests, values = _tests(
            ("l.tenant_id = {}", owner), ("l.key_id = {}", key_id), ("l.started_at >= {}", since)
        )
        rows = await connection.fetch(
            f"SELECT {expression} AS {column}, l.outcome, count(*) AS requests,"  # noqa: S608
            " count(*) FILTER (WHERE gateway.is_failure(l.status_code, l.outcome)) AS failures,"
            " sum(l.prompt_tokens)::bigint AS prompt_tokens,"
            " sum(l.completion_tokens)::bigint AS completion_tokens,"
            " sum(l.charged_tokens)::bigint AS charged_tokens"
            f" FROM gateway.ledger l WHERE {tests}"
            " GROUP BY 1, 2 ORDER BY 1, 2",
            *values,
            timeout=READ_LIMIT,
        )
        folded = _fold(rows, column)
        if by == "tenant":
            return await _with_tenants(connection, folded)
        return await _with_names(connection, folded) if by == "key" else folded

    async def _refusals(
        self,
        connection: Connection,
        since: datetime | None,
        tenant: str | None,
        limit: int,
        before: int | None,
    ) -> list[Row]:
        # A tenant that is gone may still be asked for by its id.
        owner = tenant and await connection.fetchval(
            "SELECT id FROM gateway.tenants WHERE id = $1 OR name = $1 ORDER BY id = $1 DESC",
            storable(tenant),
        )
        tests, values = _tests(
            ("tenant_id = {}", owner or (tenant and storable(tenant))),
            ("last_at >= {}", since),
            # what the index knows is when a row began
            ("at >= {}", None if since is None else since - SHARED_LONGEST),
            ("at <= (SELECT at FROM gateway.audit_log WHERE id = {})", before),
            ("(at, id) < (SELECT at, id FROM gateway.audit_log WHERE id = {})", before),
        )
        if before is not None and not await connection.fetchval(_THERE, before):
            raise Refused("the list cannot go on after what is gone; begin again", "before")
        rows = await connection.fetch(
            f"SELECT * FROM gateway.audit_log WHERE {tests}"  # noqa: S608 - no text of others
            f" ORDER BY at DESC, id DESC LIMIT {limit:d}",
            *values,
        )
        return [dict(row) for row in rows]


def _tests(*wanted: tuple[str, Any]) -> tuple[str, list[Any]]:
    """Return the condition of what is not None, its place written as `{}`, and its values."""
    tests, values = ["true"], []
    for test, value in wanted:
        if value is not None:
            values.append(value)
            tests.append(test.format(f"${len(values)}"))
    return " AND ".join(tests), values


def _fold(rows: list[Any], column: str) -> list[Row]:
    """Turn one row for each group and outcome into one for each group."""
    groups: dict[Any, Row] = {}
    for row in rows:
        empty = {column: row[column], **dict.fromkeys(_SUMS, 0), "outcomes": {}}
        group = groups.setdefault(row[column], empty)
        for name in _SUMS:
            group[name] += row[name]
        group["outcomes"][row["outcome"]] = row["requests"]
    return list(groups.values())


async def _with_names(connection: Connection, groups: list[Row]) -> list[Row]:
    names = await connection.fetch(
        "SELECT k.id, k.name, t.name AS tenant FROM gateway.api_keys k"
        " JOIN gateway.tenants t ON t.id = k.tenant_id WHERE k.id = ANY($1::text[])",
        [group["key_id"] for group in groups],
    )
    known = {row["id"]: {"key": row["name"], "tenant": row["tenant"]} for row in names}
    unknown = {"key": None, "tenant": None}
    return [
        {"key_id": group["key_id"], **known.get(group["key_id"], unknown), **group}
        for group in groups
    ]


async def _with_tenants(connection: Connection, groups: list[Row]) -> list[Row]:
    known = await tenant_names(connection, [group["tenant_id"] for group in groups])
    return [
        {"tenant_id": group["tenant_id"], "tenant": known.get(group["tenant_id"]), **group}
        for group in groups
    ]


def _parsed(text: str | None) -> Any:
    return None if text is None else json.loads(text)
