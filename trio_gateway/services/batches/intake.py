"""Batches on their way in: who validates one, and what validation leaves behind.

A batch is validated under a lease. Whatever is written for it is written in a transaction that
found the lease's token in the row and the batch still `validating`, so a validator that was
overtaken, or whose batch was cancelled, changes nothing any more.
"""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any

import orjson

from trio_gateway.core.batches import PURPOSE
from trio_gateway.services.batches.rows import COLUMNS, batch

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence
    from uuid import UUID

    from trio_gateway.clients.postgres import Connection, Postgres
    from trio_gateway.core.batches import Batch, Line, LineError

# One claim at a time, so that the bound on a tenant's batches is exact.
_TURN = "SELECT pg_advisory_xact_lock(hashtextextended('batch intake', 0))"
_NEXT = """
WITH active AS (
    SELECT tenant_id, count(*) AS batches FROM gateway.batches
    WHERE status IN ('validating', 'in_progress', 'finalizing')
        AND (status <> 'validating' OR lease_until >= now())
    GROUP BY tenant_id
)
SELECT b.id, b.tenant_id, b.input_file_id, b.input_blob
FROM gateway.batches b LEFT JOIN active a USING (tenant_id)
WHERE b.status = 'validating' AND b.expires_at > now()
    AND (b.lease_until IS NULL OR b.lease_until < now()) AND coalesce(a.batches, 0) < $1
ORDER BY coalesce(a.batches, 0), b.ordinal LIMIT 1 FOR UPDATE OF b SKIP LOCKED
"""
_FILE = """
SELECT blob, purpose FROM gateway.files
WHERE id = $1 AND tenant_id = $2 AND deleted_at IS NULL
    AND (expires_at IS NULL OR expires_at > now()) FOR SHARE
"""
_LEASE = f"""
UPDATE gateway.batches SET lease_token = $2, lease_until = now() + $3, input_blob = $4
WHERE id = $1 RETURNING {COLUMNS}
"""  # noqa: S608 - constants alone
_FORGET = "DELETE FROM gateway.batch_lines WHERE batch_id = $1"
_HELD = "WHERE id = $1 AND lease_token = $2 AND status = 'validating'"
_RENEW = f"UPDATE gateway.batches SET lease_until = now() + $3 {_HELD} RETURNING id"  # noqa: S608 - constants alone
_LOCK = f"SELECT id FROM gateway.batches {_HELD} FOR UPDATE"  # noqa: S608 - constants alone
_BEGIN = f"""
UPDATE gateway.batches SET status = 'in_progress', in_progress_at = now(), total = $3,
    models = $4, lease_token = NULL, lease_until = NULL {_HELD} RETURNING id
"""  # noqa: S608 - constants alone
_FAIL = f"""
UPDATE gateway.batches SET status = 'failed', failed_at = now(), errors = $3::jsonb,
    lease_token = NULL, lease_until = NULL {_HELD} RETURNING id
"""  # noqa: S608 - constants alone
_DROP = """
UPDATE gateway.batches SET lease_token = NULL, lease_until = NULL
WHERE id = $1 AND lease_token = $2
"""
_LINE = ("batch_id", "line", "custom_id", "model", "start", "length")


class Intake:
    """The batches that are `validating`. Every method may raise StoreUnavailable.

    Those that return a bool return False where the lease is lost or the batch was cancelled:
    then nothing was changed.
    """

    def __init__(self, postgres: Postgres) -> None:
        """Hold nothing."""
        self._postgres = postgres

    async def claim(
        self, token: UUID, lease: float, tenant_batches: int
    ) -> tuple[Batch, str | None] | None:
        """Lease the oldest batch of the tenant with the fewest under way, and pin its input.

        A tenant with `tenant_batches` under way waits; `lease` is in seconds. The second value is
        the purpose of the input file, None where the tenant has no such file; only a file for
        batches is pinned. Lines that an earlier attempt left are deleted. None: no batch to take.
        """
        return await self._postgres.transact(
            _claim, token, timedelta(seconds=lease), tenant_batches
        )

    async def renew(self, batch_id: str, token: UUID, lease: float) -> bool:
        """Prolong the lease."""
        return bool(await self._postgres.fetch(_RENEW, batch_id, token, timedelta(seconds=lease)))

    async def add_lines(self, batch_id: str, token: UUID, lines: Sequence[Line]) -> bool:
        """Add lines that are in order."""
        return await self._postgres.transact(_add_lines, batch_id, token, lines)

    async def begin(self, batch_id: str, token: UUID, total: int, models: Collection[str]) -> bool:
        """Let the lines run: `total` of them, of these canonical models."""
        rows = await self._postgres.fetch(_BEGIN, batch_id, token, total, list(models))
        return bool(rows)

    async def fail(self, batch_id: str, token: UUID, errors: Sequence[LineError]) -> bool:
        """End the batch for what is wrong with its file."""
        return await self._postgres.transact(_fail, batch_id, token, errors)

    async def drop(self, batch_id: str, token: UUID) -> None:
        """Give the lease back, if it is still held, and change nothing else."""
        await self._postgres.fetch(_DROP, batch_id, token)


async def _claim(
    connection: Connection, token: UUID, lease: timedelta, tenant_batches: int
) -> tuple[Batch, str | None] | None:
    await connection.execute(_TURN)
    found = await connection.fetchrow(_NEXT, tenant_batches)
    if found is None:
        return None
    purpose, blob = await _input(connection, found)
    leased = await connection.fetchrow(_LEASE, found["id"], token, lease, blob)
    await connection.execute(_FORGET, found["id"])
    return batch(leased), purpose


async def _input(connection: Connection, found: Any) -> tuple[str | None, str | None]:
    """Return the purpose of the input file, and its blob if that can be a batch's input."""
    if found["input_blob"] is not None:  # pinned by an attempt that was cut short
        return PURPOSE, found["input_blob"]
    file = await connection.fetchrow(_FILE, found["input_file_id"], found["tenant_id"])
    if file is None:
        return None, None
    return file["purpose"], file["blob"] if file["purpose"] == PURPOSE else None


async def _add_lines(
    connection: Connection, batch_id: str, token: UUID, lines: Sequence[Line]
) -> bool:
    if await connection.fetchrow(_LOCK, batch_id, token) is None:
        return False
    await connection.copy_records_to_table(
        "batch_lines",
        schema_name="gateway",
        columns=_LINE,
        records=[
            (batch_id, line.number, line.custom_id, line.model, line.start, line.length)
            for line in lines
        ],
    )
    return True


async def _fail(
    connection: Connection, batch_id: str, token: UUID, errors: Sequence[LineError]
) -> bool:
    shapes = orjson.dumps([error.shape() for error in errors]).decode()
    if await connection.fetchrow(_FAIL, batch_id, token, shapes) is None:
        return False
    await connection.execute(_FORGET, batch_id)
    return True
