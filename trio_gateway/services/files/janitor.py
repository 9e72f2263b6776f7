"""Removes files whose time is over, and the blobs that nobody has any more.

Any number of janitors may work at once: rows that another holds are left to it, and what is
done twice is done once.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import structlog
import trio

from trio_gateway.core.errors import StoreUnavailable

if TYPE_CHECKING:
    from trio_gateway.clients.blobs import Blobs
    from trio_gateway.clients.postgres import Postgres

log = structlog.get_logger()

SLICE = 100  # rows at a time
LATER = 60.0  # seconds until a blob that could not be deleted is tried again
LAST_LIMIT = 1.0  # seconds to write down what was done, when told to stop

_HIDE = """
UPDATE gateway.files SET deleted_at = now() WHERE id IN (
    SELECT id FROM gateway.files WHERE expires_at <= now() AND deleted_at IS NULL
    ORDER BY expires_at LIMIT $1 FOR UPDATE SKIP LOCKED
) RETURNING id
"""
# A batch that reads the file has its blob in `input_blob` from the step that found the file.
_PURGE = """
WITH purged AS (
    DELETE FROM gateway.files WHERE id IN (
        SELECT f.id FROM gateway.files f WHERE f.deleted_at IS NOT NULL AND NOT EXISTS (
            SELECT FROM gateway.batches b WHERE b.input_blob = f.blob
                AND b.status IN ('validating', 'in_progress', 'finalizing', 'cancelling'))
        ORDER BY f.deleted_at LIMIT $1 FOR UPDATE SKIP LOCKED
    ) RETURNING blob
)
INSERT INTO gateway.doomed_blobs (path, due) SELECT blob, now() FROM purged
ON CONFLICT (path) DO UPDATE SET due = excluded.due RETURNING path
"""
# Whoever makes a blob his own holds its row meanwhile, and only before it is due.
_DUE = """
SELECT path FROM gateway.doomed_blobs WHERE due <= now() ORDER BY due LIMIT $1
FOR UPDATE SKIP LOCKED
"""
_DONE = "DELETE FROM gateway.doomed_blobs WHERE path = ANY($1::text[]) AND due <= now()"
_LATER = """
UPDATE gateway.doomed_blobs SET due = now() + make_interval(secs => $2)
WHERE path = $1 AND due <= now()
"""


class Janitor:
    """One per worker."""

    def __init__(self, postgres: Postgres, blobs: Blobs, interval: float) -> None:
        """`interval` is in seconds, between two rounds."""
        self._postgres = postgres
        self._blobs = blobs
        self._interval = interval

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Make rounds for ever."""
        task_status.started()
        while True:
            try:
                await self.round()
            except StoreUnavailable:
                log.warning("janitor_waits")
            await trio.sleep(self._interval)

    async def round(self) -> None:
        """Do all that is due now. Raises StoreUnavailable."""
        for query in (_HIDE, _PURGE):
            while len(await self._postgres.fetch(query, SLICE)) == SLICE:
                pass
        while await self._delete_some() == SLICE:
            pass

    async def _delete_some(self) -> int:
        """Delete a slice of the blobs that are due; return how many there were."""
        due = [row["path"] for row in await self._postgres.fetch(_DUE, SLICE)]
        done: list[str] = []
        try:
            for path in due:
                await self._delete(path)
                done.append(path)
        finally:
            if done:
                with trio.move_on_after(LAST_LIMIT, shield=True):
                    await self._postgres.fetch(_DONE, done)
        return len(due)

    async def _delete(self, path: str) -> None:
        """Delete a blob; one that cannot be must not stand in the way of the others."""
        failed = None
        try:
            await self._blobs.delete(path)
        except StoreUnavailable as error:
            failed = error
        if failed is not None:
            await self._postgres.fetch(_LATER, path, LATER)
            raise failed
