"""The operator's book of files, of every tenant; each act and its record are one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from trio_gateway.services.account_rows import (
    NotFound,
    find_tenant,
    printable,
    start_of,
    storable,
    write_event,
)
from trio_gateway.services.files.rows import VISIBLE

if TYPE_CHECKING:
    from trio_gateway.clients.postgres import Connection, Postgres
    from trio_gateway.services.account_rows import Row

_SELECT = f"""
SELECT f.id, f.tenant_id, t.name AS tenant, f.purpose, f.filename, f.bytes, f.blob, f.created_at,
    f.expires_at
FROM gateway.files f JOIN gateway.tenants t ON t.id = f.tenant_id
WHERE {VISIBLE}
"""  # noqa: S608 - constants alone
_LIST = _SELECT + (
    " AND ($1::text IS NULL OR f.tenant_id = $1) AND ($2::text IS NULL OR f.purpose = $2)"
    " AND f.ordinal < $4 ORDER BY f.ordinal DESC LIMIT $3"
)
_BY_ID = _SELECT + " AND f.id = $1"


class FileBook:
    """Files by id. Answers are rows as dicts, with the tenant's name as `tenant`.

    Errors raised: NotFound, StoreUnavailable, NotMigrated.
    """

    def __init__(self, postgres: Postgres, actor: str) -> None:
        """`actor` is who the record names."""
        self._postgres = postgres
        self._actor = actor

    async def listing(
        self,
        tenant: str | None = None,
        purpose: str | None = None,
        limit: int = 100,
        before: str | None = None,
    ) -> list[Row]:
        """Return files, newest first, of one tenant or of all.

        `before` is the id that the last page ended with; raises Refused where it is none.
        """
        return await self._postgres.run(_list, tenant, purpose, limit, before)

    async def show(self, file_id: str) -> Row:
        """Return one file."""
        return await self._postgres.run(_find, file_id)

    async def read(self, file_id: str) -> Row:
        """Return one file, to read its contents, which is an act on record."""
        return await self._postgres.transact(self._read, file_id)

    async def delete(self, file_id: str) -> Row:
        """Hide a file for good, and return it; its blob goes once no open batch reads it."""
        return await self._postgres.transact(self._delete, file_id)

    async def _read(self, connection: Connection, file_id: str) -> Row:
        row = await _find(connection, file_id)
        await write_event(connection, (self._actor, "file.read", row["id"]), None, None)
        return row

    async def _delete(self, connection: Connection, file_id: str) -> Row:
        row = await _find(connection, file_id, lock=True)
        await connection.execute(
            "UPDATE gateway.files SET deleted_at = now() WHERE id = $1", row["id"]
        )
        await write_event(connection, (self._actor, "file.delete", row["id"]), row, None)
        return row


async def _list(
    connection: Connection,
    tenant: str | None,
    purpose: str | None,
    limit: int,
    before: str | None,
) -> list[Row]:
    owner = None if tenant is None else (await find_tenant(connection, tenant))["id"]
    wanted = None if purpose is None else storable(purpose)
    start = await start_of(connection, "files", before)
    return [dict(row) for row in await connection.fetch(_LIST, owner, wanted, limit, start)]


async def _find(connection: Connection, file_id: str, *, lock: bool = False) -> dict[str, Any]:
    query = _BY_ID + (" FOR UPDATE OF f" if lock else "")
    row = await connection.fetchrow(query, storable(file_id))
    if row is None:
        raise NotFound(f"there is no file {printable(file_id)}", "file")
    return dict(row)
