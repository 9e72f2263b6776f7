"""The marker: a blob by which every machine can tell whether it sees the installation's files."""

from __future__ import annotations

import secrets
from datetime import timedelta
from typing import TYPE_CHECKING

import structlog
import trio

from trio_gateway.clients.blobs import BlobMissing
from trio_gateway.core.errors import StoreUnavailable

if TYPE_CHECKING:
    from trio_gateway.clients.blobs import Blobs
    from trio_gateway.clients.postgres import Connection, Postgres

log = structlog.get_logger()

CONTENT = b"Files of a trio-gateway are kept here.\n"
GRACE = timedelta(hours=1)  # for a marker to be written and named
PAUSE = 5.0  # seconds between two looks at a store that does not answer


async def find_marker(postgres: Postgres) -> str | None:
    """Return the marker's path; None while no worker has named one."""
    row = await postgres.fetch_one("SELECT blob_marker FROM gateway.installation")
    return None if row is None else row["blob_marker"]


async def is_marked(blobs: Blobs, marker: str) -> bool:
    """Whether the store has the marker."""
    try:
        return await blobs.read(marker, 0, len(CONTENT)) == CONTENT
    except BlobMissing:
        return False


async def check_marker(postgres: Postgres, blobs: Blobs) -> bool:
    """Whether this store is the installation's; the first to ask makes it so.

    Raises StoreUnavailable.
    """
    marker = await find_marker(postgres)
    if marker is None:
        written = f"markers/{secrets.token_hex(16)}"
        await postgres.run(_doom, written)
        await blobs.put(written, CONTENT)
        marker = await postgres.transact(_name, written)
    return await is_marked(blobs, marker)


async def tell_of_marker(postgres: Postgres, blobs: Blobs) -> None:
    """Check the marker once the stores answer, and say so where the files are elsewhere."""
    while True:
        try:
            found = await check_marker(postgres, blobs)
            break
        except StoreUnavailable:
            await trio.sleep(PAUSE)
    if not found:
        log.warning(
            "blobs_elsewhere",
            reason="files of this installation are in another store: give every machine the same "
            "TRIO_GATEWAY_BLOB_URL",
        )


async def _doom(connection: Connection, path: str) -> None:
    await connection.execute(
        "INSERT INTO gateway.doomed_blobs (path, due) VALUES ($1, now() + $2)", path, GRACE
    )


async def _name(connection: Connection, written: str) -> str:
    """Name the marker unless another worker did, and return the one that is named."""
    marker: str = await connection.fetchval(
        "UPDATE gateway.installation SET blob_marker = coalesce(blob_marker, $1)"
        " RETURNING blob_marker",
        written,
    )
    await connection.execute("DELETE FROM gateway.doomed_blobs WHERE path = $1", marker)
    return marker
