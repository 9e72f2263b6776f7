"""How batches end: who writes their files, and the one transaction that makes them final."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING
from uuid import UUID, uuid4

from trio_gateway.core.batches import Batch, Status
from trio_gateway.services.batches.rows import COLUMNS, batch

if TYPE_CHECKING:
    from collections.abc import Sequence

    from trio_gateway.clients.postgres import Connection, Postgres

PAGE = 1000  # lines read at once
LATE = timedelta(minutes=10)  # until then a worker that was stopped may still write results
INTENT = timedelta(hours=6)  # for the files to be written, after which they count as left behind

# Lines in flight are waited for: where the batch was cancelled they are being aborted, where its
# window is over they may end. A lease that ran out belongs to nobody.
_CLAIM = f"""
UPDATE gateway.batches SET lease_token = $1, lease_until = now() + $2,
    status = CASE WHEN {{done}} THEN 'finalizing' ELSE status END,
    finalizing_at = CASE WHEN {{done}} THEN now() ELSE finalizing_at END
WHERE id = (
    SELECT b.id FROM gateway.batches b
    WHERE b.status IN ('validating', 'in_progress', 'finalizing', 'cancelling')
        AND (b.lease_until IS NULL OR b.lease_until < now())
        AND (b.status = 'finalizing'
            OR (b.status = 'in_progress' AND b.completed + b.failed = b.total)
            OR ((b.status = 'cancelling' OR b.expires_at <= now()) AND NOT EXISTS (
                SELECT FROM gateway.batch_lines l
                WHERE l.batch_id = b.id AND l.state = 'leased' AND l.lease_until >= now())))
    ORDER BY b.ordinal LIMIT 1 FOR UPDATE SKIP LOCKED
) RETURNING {COLUMNS}
""".format(done="(status = 'in_progress' AND completed + failed = total)")  # noqa: S608 - constants
_ABANDON = """
UPDATE gateway.batch_lines SET state = 'abandoned', lease_token = NULL, lease_until = NULL
WHERE batch_id = $1 AND state IN ('queued', 'leased')
"""
_FORGET = "DELETE FROM gateway.batch_lines WHERE batch_id = $1"
_INTEND = """
INSERT INTO gateway.doomed_blobs (path, due) SELECT unnest($1::text[]), now() + $2
"""
_RENEW = """
UPDATE gateway.batches SET lease_until = now() + $3 WHERE id = $1 AND lease_token = $2 RETURNING id
"""
_PAGE = f"""
SELECT line, custom_id, state, result_blob, result_start, result_length
FROM gateway.batch_lines WHERE batch_id = $1 AND line > $2 ORDER BY line LIMIT {PAGE}
"""  # noqa: S608 - constants alone
_END = """
UPDATE gateway.batches SET status = $4,
    completed_at = CASE WHEN $4 = 'completed' THEN now() END,
    expired_at = CASE WHEN $4 = 'expired' THEN now() END,
    cancelled_at = CASE WHEN $4 = 'cancelled' THEN now() END,
    output_file_id = $5, error_file_id = $6, completed = $7, failed = $8,
    paused = NULL, resume_at = NULL, lease_token = NULL, lease_until = NULL
WHERE id = $1 AND lease_token = $2 AND status = $3 RETURNING id
"""
_DOOM = """
INSERT INTO gateway.doomed_blobs (path, due) VALUES ($1, now() + $2)
ON CONFLICT (path) DO UPDATE SET due = excluded.due
"""


@dataclass(frozen=True, slots=True)
class Ended:
    """What the files of a batch turned out to be; an id is None where the file would be empty."""

    status: Status
    output_file_id: str | None
    error_file_id: str | None
    completed: int
    failed: int


@dataclass(frozen=True, slots=True)
class EndedLine:
    """One line of an ended batch; `blob` is None where it was never run."""

    number: int
    custom_id: str
    state: str
    blob: str | None
    start: int
    length: int


class FencedOutError(Exception):
    """The lease is another's by now, or the batch was cancelled meanwhile: nothing was changed."""


class Endings:
    """Leases on batches that are about to end. Every method may raise StoreUnavailable."""

    def __init__(self, postgres: Postgres, lease: float) -> None:
        """`lease` is in seconds."""
        self._postgres = postgres
        self._lease = timedelta(seconds=lease)

    async def claim(self) -> tuple[Batch, UUID] | None:
        """Lease a batch that no line is to run of any more; its other lines are abandoned."""
        return await self._postgres.transact(self._claim)

    async def intend(self, paths: Sequence[str]) -> None:
        """List blobs that are about to be written, so that a crash leaves none behind."""
        await self._postgres.fetch(_INTEND, list(paths), INTENT)

    async def renew(self, batch_id: str, token: UUID) -> bool:
        """Prolong the lease; False if it is lost."""
        return bool(await self._postgres.fetch(_RENEW, batch_id, token, self._lease))

    async def page(self, batch_id: str, after: int) -> list[EndedLine]:
        """Return up to PAGE lines in their order, from the one after `after` on."""
        rows = await self._postgres.fetch(_PAGE, batch_id, after)
        return [EndedLine(*row.values()) for row in rows]

    async def _claim(self, connection: Connection) -> tuple[Batch, UUID] | None:
        token = uuid4()
        row = await connection.fetchrow(_CLAIM, token, self._lease)
        if row is None:
            return None
        found = batch(row)
        if found.in_progress_at is None:  # its validation was cut short: it has no requests
            await connection.execute(_FORGET, found.id)
        elif found.status is not Status.FINALIZING:
            await connection.execute(_ABANDON, found.id)
        return found, token


async def end(connection: Connection, found: Batch, token: UUID, ended: Ended) -> None:
    """Make a batch final and forget its lines, inside the caller's transaction.

    `found` is the batch as it was claimed. Raises FencedOutError.
    """
    row = await connection.fetchrow(
        _END,
        found.id,
        token,
        found.status,
        ended.status,
        ended.output_file_id,
        ended.error_file_id,
        ended.completed,
        ended.failed,
    )
    if row is None:
        raise FencedOutError
    await connection.execute(_FORGET, found.id)
    await connection.execute(_DOOM, f"results/{found.id}/", LATE)
