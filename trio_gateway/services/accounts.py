"""The operator's book of tenants; each change and its record are one transaction."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from trio_gateway.clients.postgres import Duplicate, Missing
from trio_gateway.services.account_rows import (
    Row,
    Taken,
    Unfit,
    check_seen,
    check_values,
    find_tenant,
    insert,
    new_id,
    spent,
    storable,
    update,
    write_event,
)
from trio_gateway.services.budgets import notice_change
from trio_gateway.services.extensions import ENDED, extension
from trio_gateway.services.names import check_name
from trio_gateway.services.tenant_rows import LIMITS

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from datetime import datetime, timedelta

    from trio_gateway.clients.postgres import Connection, Postgres

COLUMNS = ("all_models", "models", "allow_cloud", "weight_share", *LIMITS)
KEYS_COUNTED = 1000  # of each tenant in a list; a tenant may have many more
_LIST = f"""
SELECT t.*, gateway.effective_budget(t.budget, t.budget_extra, t.budget_extra_until)
        AS effective_budget,
    (SELECT count(*) FROM (SELECT FROM gateway.api_keys k WHERE k.tenant_id = t.id
        LIMIT {KEYS_COUNTED}) k) AS keys
FROM gateway.tenants t
WHERE t.name > $3 AND (strpos(lower(t.name), lower($1)) > 0 OR $1 = '')
ORDER BY t.name LIMIT $2
"""  # noqa: S608 - constants alone
# What a tenant leaves behind, in the order in which it can go.
_LEAVE = (
    (
        "DELETE FROM gateway.batches WHERE tenant_id = $1 AND status IN"
        " ('completed', 'failed', 'expired', 'cancelled')"
    ),
    """
    WITH purged AS (
        DELETE FROM gateway.files WHERE tenant_id = $1
            AND (deleted_at IS NOT NULL OR expires_at <= now()) RETURNING blob
    )
    INSERT INTO gateway.doomed_blobs (path, due) SELECT blob, now() FROM purged
    ON CONFLICT (path) DO UPDATE SET due = excluded.due
    """,
    (
        "DELETE FROM gateway.revocations r USING gateway.api_keys k"
        " WHERE r.key_id = k.id AND k.tenant_id = $1"
    ),
    "DELETE FROM gateway.api_keys WHERE tenant_id = $1",
    "DELETE FROM gateway.tenants WHERE id = $1",
)


class Accounts:
    """Tenants by name or id. Errors raised: Refused, NotFound, StoreUnavailable, NotMigrated.

    Answers are rows as dicts with the columns of `gateway.tenants`.
    """

    def __init__(self, postgres: Postgres, actor: str) -> None:
        """`actor` is who the record names."""
        self._postgres = postgres
        self._actor = actor

    async def create(self, name: str, values: Mapping[str, Any]) -> Row:
        """Add a tenant; `values` holds some of COLUMNS, models in canonical spelling."""
        check_name(name, "tenant")
        check_values(values, COLUMNS)
        with _taken(name):
            return await self._postgres.transact(self._create, name, values)

    async def listing(self, match: str = "", limit: int = 1000, after: str = "") -> list[Row]:
        """Return tenants by name, those alone whose name contains `match`.

        `after` is the name that the last page ended with; `keys` counts up to KEYS_COUNTED.
        """
        rows = await self._postgres.fetch(_LIST, storable(match), limit, storable(after))
        return [dict(row) for row in rows]

    async def show(self, name: str) -> Row:
        """Return one tenant, with `spent` of its present budget period."""
        return await self._postgres.run(self._show, name)

    async def update(
        self, name: str, values: Mapping[str, Any], seen: Mapping[str, Any] | None = None
    ) -> Row:
        """Change its name, or some of COLUMNS; what its keys may do narrows at once, at run time.

        `seen` holds columns as whoever changes them saw them; see `check_seen`.
        """
        check_values(values, ("name", *COLUMNS))
        if "name" in values:
            check_name(values["name"], "tenant")
        with _taken(values.get("name", "")):
            return await self._postgres.transact(self._update, name, "tenant.update", values, seen)

    async def extend(self, name: str, tokens: int, until: datetime | timedelta) -> Row:
        """Add tokens to the tenant's budget until an instant, or for a while.

        `effective_budget` in the answer is the sum. An earlier increase is replaced.
        """
        return await self._postgres.transact(self._extend, name, tokens, until)

    async def end_extension(self, name: str) -> Row:
        """End an increase now; without one it is no error."""
        return await self._postgres.transact(self._end_extension, name)

    async def disable(self, name: str) -> Row:
        """Refuse the tenant's keys from now on, and cut its calls in flight."""
        return await self._postgres.transact(self._switch, name, "tenant.disable")

    async def enable(self, name: str) -> Row:
        """Undo `disable`."""
        return await self._postgres.transact(self._switch, name, "tenant.enable")

    async def delete(self, name: str) -> Row:
        """Remove a tenant with its keys and ended batches, and cut its calls.

        Ledger and spend stay. A tenant that has files, or batches under way, is refused.
        """
        try:
            return await self._postgres.transact(self._delete, name)
        except Missing as error:
            raise Unfit(
                "the tenant still has files or open batches; delete and cancel them first, or"
                " disable the tenant instead"
            ) from error

    async def _create(self, connection: Connection, name: str, values: Mapping[str, Any]) -> Row:
        tenant_id = new_id("ten_")
        await insert(connection, "tenants", {"id": tenant_id, "name": name, **values})
        row = await find_tenant(connection, tenant_id)
        await write_event(connection, (self._actor, "tenant.create", tenant_id), None, row)
        return row

    async def _show(self, connection: Connection, name: str) -> Row:
        row = await find_tenant(connection, name)
        return {**row, "spent": await spent(connection, f"t:{row['id']}", row["budget_period"])}

    async def _update(
        self,
        connection: Connection,
        name: str,
        action: str,
        values: Mapping[str, Any],
        seen: Mapping[str, Any] | None = None,
    ) -> Row:
        before = await find_tenant(connection, name, lock=True)
        check_seen(before, seen or {}, values)
        await update(connection, "tenants", before["id"], values)
        await notice_change(connection, f"t:{before['id']}", values)
        after = await find_tenant(connection, before["id"])
        await write_event(connection, (self._actor, action, before["id"]), before, after)
        return after

    async def _extend(
        self, connection: Connection, name: str, tokens: int, until: datetime | timedelta
    ) -> Row:
        row = await find_tenant(connection, name, lock=True)
        values = await extension(connection, row, tokens, until)
        return await self._update(connection, row["id"], "tenant.extend", values)

    async def _end_extension(self, connection: Connection, name: str) -> Row:
        row = await find_tenant(connection, name, lock=True)
        if row["budget_extra"] is None:
            return row
        return await self._update(connection, row["id"], "tenant.end_extension", ENDED)

    async def _switch(self, connection: Connection, name: str, action: str) -> Row:
        off = action == "tenant.disable"
        row = await find_tenant(connection, name, lock=True)
        if (row["disabled_at"] is not None) is off:
            return row
        at = await connection.fetchval("SELECT now()") if off else None
        return await self._update(connection, row["id"], action, {"disabled_at": at})

    async def _delete(self, connection: Connection, name: str) -> Row:
        row = await find_tenant(connection, name, lock=True)
        for statement in _LEAVE:
            await connection.execute(statement, row["id"])
        await write_event(connection, (self._actor, "tenant.delete", row["id"]), row, None)
        return row


@contextmanager
def _taken(name: str) -> Iterator[None]:
    try:
        yield
    except Duplicate as error:
        raise Taken(f"there is a tenant named {name} already", "name") from error
