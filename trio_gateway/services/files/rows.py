"""Rows of `gateway.files`, and the step by which a blob becomes a file."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from trio_gateway.core.batches import StoredFile

if TYPE_CHECKING:
    from trio_gateway.clients.postgres import Connection

COLUMNS = "id, tenant_id, purpose, filename, bytes, blob, created_at, expires_at"
VISIBLE = "deleted_at IS NULL AND (expires_at IS NULL OR expires_at > now())"

# A tenant's files are written one after the other: the sum of their sizes then is exact, and
# their ordinals become visible in order, so that paging misses none.
LOCK = "SELECT pg_advisory_xact_lock(hashtextextended('files ' || $1, 0))"

# A blob that is due may be gone already, though its row is still there. The minute is for the
# instant between this look at the clock and the lock on the row.
_STRIKE_OFF = """
DELETE FROM gateway.doomed_blobs
WHERE path = $1 AND due > clock_timestamp() + interval '1 minute' RETURNING path
"""
_INSERT = f"""
INSERT INTO gateway.files ({COLUMNS}) VALUES ($1, $2, $3, $4, $5, $6, $7, $8)
"""  # noqa: S608 - constants alone


def stored_file(row: Any) -> StoredFile:
    """Read a row that has COLUMNS."""
    return StoredFile(**{name: row[name] for name in COLUMNS.split(", ")})


async def insert_file(connection: Connection, file: StoredFile) -> bool:
    """Make a blob a file, inside a transaction of the caller's; an asyncio function.

    The blob must have been doomed, with more than a minute to go: it is struck off. False, and
    nothing is written, where it is not there any more.
    """
    await connection.execute(LOCK, file.tenant_id)
    if await connection.fetchval(_STRIKE_OFF, file.blob) is None:
        return False
    await connection.execute(
        _INSERT,
        file.id,
        file.tenant_id,
        file.purpose,
        file.filename,
        file.bytes,
        file.blob,
        file.created_at,
        file.expires_at,
    )
    return True
