"""A tenant's files: found, listed, kept and removed. What they hold is in the blob store."""

from __future__ import annotations

import re
import secrets
from datetime import timedelta
from typing import TYPE_CHECKING

from trio_gateway.core.errors import CallTooLarge, NotFound, StoreUnavailable
from trio_gateway.services.files.rows import COLUMNS, LOCK, VISIBLE, insert_file, stored_file

if TYPE_CHECKING:
    from trio_gateway.clients.postgres import Connection, Postgres
    from trio_gateway.core.batches import StoredFile

GRACE = timedelta(hours=6)  # for an upload, before its blob is swept away

_ID = re.compile(r"[A-Za-z0-9_-]{1,128}")
_FIND = f"""
SELECT {COLUMNS} FROM gateway.files WHERE tenant_id = $1 AND id = $2 AND {VISIBLE}
"""  # noqa: S608 - constants alone
_CURSOR = "SELECT ordinal FROM gateway.files WHERE tenant_id = $1 AND id = $2"
_LIST = """
SELECT {columns} FROM gateway.files
WHERE tenant_id = $1 AND {visible} AND ($2::text IS NULL OR purpose = $2)
    AND ($3::bigint IS NULL OR ordinal {past} $3)
ORDER BY ordinal {order} LIMIT $4
"""
_LISTS = {
    order: _LIST.format(columns=COLUMNS, visible=VISIBLE, past=past, order=order)
    for order, past in (("asc", ">"), ("desc", "<"))
}
_DOOM = "INSERT INTO gateway.doomed_blobs (path, due) VALUES ($1, now() + $2)"
_ABANDON = "UPDATE gateway.doomed_blobs SET due = now() WHERE path = $1"
_SUM = f"""
SELECT coalesce(sum(bytes), 0)::bigint FROM gateway.files WHERE tenant_id = $1 AND {VISIBLE}
"""  # noqa: S608 - constants alone
_REMOVE = f"""
UPDATE gateway.files SET deleted_at = now()
WHERE tenant_id = $1 AND id = $2 AND {VISIBLE} RETURNING id
"""  # noqa: S608 - constants alone


def new_file_id() -> str:
    """Return an id that nobody can guess."""
    return "file-" + secrets.token_hex(12)


def blob_of(tenant_id: str, file_id: str) -> str:
    """Return where the contents of an uploaded file are."""
    return f"files/{tenant_id}/{file_id}"


class Files:
    """The files of every tenant; each method may raise StoreUnavailable."""

    def __init__(self, postgres: Postgres, tenant_bytes: int) -> None:
        """`tenant_bytes` is the most that one tenant's files may have together."""
        self._postgres = postgres
        self._tenant_bytes = tenant_bytes

    async def find(self, tenant_id: str, file_id: str) -> StoredFile:
        """Return a file; raises NotFound for any that this tenant cannot see."""
        row = None
        if _ID.fullmatch(file_id):
            row = await self._postgres.fetch_one(_FIND, tenant_id, file_id)
        if row is None:
            raise _missing(file_id)
        return stored_file(row)

    async def listing(
        self, tenant_id: str, purpose: str | None, limit: int, order: str, after: str | None
    ) -> tuple[list[StoredFile], bool]:
        """Return one page, and whether more follows; `order` is `asc` or `desc`.

        An `after` that names no file of the tenant's counts as none.
        """
        return await self._postgres.run(_page, tenant_id, (purpose, limit, order, after))

    async def reserve(self, tenant_id: str, blob: str) -> int:
        """List a blob that is about to be written, and return how many bytes it may have.

        A crash on the way then leaves nothing behind for more than GRACE.
        """
        return self._tenant_bytes - await self._postgres.run(_reserve, tenant_id, blob)

    async def keep(self, file: StoredFile) -> None:
        """Make a reserved blob a file, all or nothing. Raises CallTooLarge."""
        await self._postgres.transact(_keep, file, self._tenant_bytes)

    async def abandon(self, blob: str) -> None:
        """Have a reserved blob deleted soon, unless it was made a file meanwhile."""
        await self._postgres.fetch(_ABANDON, blob)

    async def remove(self, tenant_id: str, file_id: str) -> None:
        """Hide a file at once; its contents go when no batch reads them. Raises NotFound."""
        row = None
        if _ID.fullmatch(file_id):
            row = await self._postgres.fetch_one(_REMOVE, tenant_id, file_id)
        if row is None:
            raise _missing(file_id)

    def full(self) -> CallTooLarge:
        """Return the error for a file that does not fit beside the tenant's others."""
        return _full(self._tenant_bytes)


def _missing(file_id: str) -> NotFound:
    return NotFound(f"No such File object: {file_id}")


def _full(tenant_bytes: int) -> CallTooLarge:
    return CallTooLarge(
        f"The file does not fit: all files together may have {tenant_bytes} bytes."
        " Delete some of them first.",
        param="file",
        code="file_quota_exceeded",
    )


async def _page(
    connection: Connection, tenant_id: str, wanted: tuple[str | None, int, str, str | None]
) -> tuple[list[StoredFile], bool]:
    purpose, limit, order, after = wanted
    cursor = None
    if after is not None and _ID.fullmatch(after):
        cursor = await connection.fetchval(_CURSOR, tenant_id, after)
    rows = await connection.fetch(_LISTS[order], tenant_id, purpose, cursor, limit + 1)
    return [stored_file(row) for row in rows[:limit]], len(rows) > limit


async def _reserve(connection: Connection, tenant_id: str, blob: str) -> int:
    await connection.execute(_DOOM, blob, GRACE)
    return int(await connection.fetchval(_SUM, tenant_id))


async def _keep(connection: Connection, file: StoredFile, tenant_bytes: int) -> None:
    await connection.execute(LOCK, file.tenant_id)
    if await connection.fetchval(_SUM, file.tenant_id) + file.bytes > tenant_bytes:
        raise _full(tenant_bytes)
    if not await insert_file(connection, file):
        raise StoreUnavailable  # the upload took longer than its blob was kept
