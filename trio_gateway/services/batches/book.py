"""The book of batches: made once for each key, found, listed, cancelled.

A tenant's creates are written one after the other, under a lock: twins of one idempotency key
then meet the first one's row, the bound on open batches is exact, and a tenant's ordinals
become visible in their order, so that paging misses none.
"""

from __future__ import annotations

import hashlib
import secrets
from typing import TYPE_CHECKING

import orjson

from trio_gateway.clients.postgres import Missing
from trio_gateway.core.batches import TERMINAL, WINDOW_SECONDS, Status
from trio_gateway.core.errors import (
    Conflict,
    NotFound,
    RateLimited,
    StoreUnavailable,
    Unauthenticated,
)
from trio_gateway.services.account_rows import start_of, storable, write_event
from trio_gateway.services.batches.rows import COLUMNS, batch

if TYPE_CHECKING:
    from trio_gateway.clients.postgres import Connection, Postgres
    from trio_gateway.core.batches import Batch, Wanted
    from trio_gateway.core.domain import Principal

MOST_OPEN = 1000  # batches of one tenant that have not ended
MOST_ECHO = 100  # characters of a caller's value in a message

_OPEN = "('validating', 'in_progress', 'finalizing', 'cancelling')"
_OF_KEY = f"""
SELECT fingerprint, {COLUMNS} FROM gateway.batches WHERE tenant_id = $1 AND idempotency_key = $2
"""  # noqa: S608 - constants alone
_LOCK = "SELECT pg_advisory_xact_lock(hashtextextended('batches ' || $1, 0))"
_COUNT = f"""
SELECT count(*) FROM (
    SELECT FROM gateway.batches WHERE tenant_id = $1 AND status IN {_OPEN} LIMIT $2) open
"""  # noqa: S608 - constants alone
_INSERT = f"""
INSERT INTO gateway.batches (id, tenant_id, key_id, endpoint, input_file_id, completion_window,
    metadata, output_expires_after, idempotency_key, fingerprint, expires_at)
VALUES ($1, $2, $3, $4, $5, $6, $7::jsonb, $8, $9, $10, now() + make_interval(secs => $11))
ON CONFLICT (tenant_id, idempotency_key) DO NOTHING RETURNING {COLUMNS}
"""  # noqa: S608 - constants alone
_FIND = f"""
SELECT {COLUMNS} FROM gateway.batches WHERE id = $1 AND ($2::text IS NULL OR tenant_id = $2)
"""  # noqa: S608 - constants alone
_LIST = f"""
SELECT {COLUMNS} FROM gateway.batches WHERE tenant_id = $1 AND ordinal < coalesce(
    (SELECT ordinal FROM gateway.batches WHERE id = $2 AND tenant_id = $1), {2**63 - 1})
ORDER BY ordinal DESC LIMIT $3
"""  # noqa: S608 - constants alone
_ALL = f"""
SELECT {COLUMNS} FROM gateway.batches
WHERE ($1::text IS NULL OR tenant_id = $1) AND ($2::text IS NULL OR status = $2)
    AND ordinal < $4
ORDER BY ordinal DESC LIMIT $3
"""  # noqa: S608 - constants alone
_CANCEL = f"""
UPDATE gateway.batches
SET status = 'cancelling', cancelling_at = now(), paused = NULL, resume_at = NULL,
    lease_token = NULL, lease_until = NULL
WHERE id = $1 AND ($2::text IS NULL OR tenant_id = $2)
    AND status IN ('validating', 'in_progress', 'finalizing')
RETURNING {COLUMNS}
"""  # noqa: S608 - constants alone


def fingerprint(wanted: Wanted) -> bytes:
    """Return what two creates with one key must have in common; no metadata is not `{}`."""
    compared = {
        "input_file_id": wanted.input_file_id,
        "endpoint": wanted.endpoint,
        "completion_window": wanted.completion_window,
        "metadata": wanted.metadata,
        "output_expires_after": wanted.output_expires_after,
    }
    return hashlib.sha256(orjson.dumps(compared, option=orjson.OPT_SORT_KEYS)).digest()


class BatchBook:
    """The batches of all tenants. Another tenant's batch is NotFound, as an unknown one is.

    Errors raised by all: StoreUnavailable.
    """

    def __init__(self, postgres: Postgres, most_open: int = MOST_OPEN) -> None:
        """Let each tenant have `most_open` batches that have not ended."""
        self._postgres = postgres
        self._most_open = most_open

    async def create(self, principal: Principal, wanted: Wanted) -> tuple[Batch, bool]:
        """Return the new batch and False, or the one that its key has already made and True.

        Raises Conflict where that one was made of something else, and RateLimited past the bound
        on open batches; neither uses up the key.
        """
        try:
            return await self._postgres.transact(self._create, principal, wanted)
        except Missing:  # the tenant was deleted since its key was proven
            raise Unauthenticated from None

    async def find(self, tenant_id: str, batch_id: str) -> Batch:
        """Return one batch of the tenant, or raise NotFound."""
        return await self._find(batch_id, tenant_id)

    async def listing(
        self, tenant_id: str, limit: int, after: str | None = None
    ) -> tuple[list[Batch], bool]:
        """Return a page, newest first, and whether there is more.

        An `after` that is no batch of the tenant's begins at the start.
        """
        known = after if after is None or after.isprintable() else None
        rows = await self._postgres.fetch(_LIST, tenant_id, known, limit + 1)
        return [batch(row) for row in rows[:limit]], len(rows) > limit

    async def cancel(self, tenant_id: str, batch_id: str) -> Batch:
        """Begin to cancel, which an earlier cancel has done as well; return the batch.

        Raises NotFound, and Conflict for a batch that ended in another way.
        """
        return await self._postgres.run(_cancel, batch_id, tenant_id)

    async def all(
        self,
        tenant_id: str | None = None,
        status: Status | None = None,
        limit: int = 100,
        before: str | None = None,
    ) -> list[Batch]:
        """Return batches of every tenant, or of one, newest first; for the operator.

        `before` is the id that the last page ended with; raises Refused where it is none.
        """
        return await self._postgres.run(_all, tenant_id, status, limit, before)

    async def find_any(self, batch_id: str) -> Batch:
        """As `find`, whoever's it is; for the operator."""
        return await self._find(storable(batch_id), None)

    async def cancel_any(self, batch_id: str, actor: str = "operator") -> Batch:
        """As `cancel`, whoever's it is; recorded as an act of the operator's."""
        return await self._postgres.transact(_cancel_recorded, storable(batch_id), actor)

    async def _find(self, batch_id: str, tenant_id: str | None) -> Batch:
        row = await self._postgres.fetch_one(_FIND, batch_id, tenant_id)
        if row is None:
            raise _not_found(batch_id)
        return batch(row)

    async def _create(
        self, connection: Connection, principal: Principal, wanted: Wanted
    ) -> tuple[Batch, bool]:
        tenant_id, mark = principal.tenant.id, fingerprint(wanted)
        await connection.execute(_LOCK, tenant_id)
        row = await connection.fetchrow(
            _INSERT,
            f"batch_{secrets.token_hex(12)}",
            tenant_id,
            principal.key.id,
            wanted.endpoint,
            wanted.input_file_id,
            wanted.completion_window,
            None if wanted.metadata is None else orjson.dumps(wanted.metadata).decode(),
            wanted.output_expires_after,
            wanted.idempotency_key,
            mark,
            WINDOW_SECONDS,
        )
        if row is None:
            return await _earlier(connection, tenant_id, wanted, mark), True
        # After the insert, so that a replay is never refused.
        if await connection.fetchval(_COUNT, tenant_id, self._most_open + 1) > self._most_open:
            raise _too_many(self._most_open)
        return batch(row), False


async def _all(
    connection: Connection,
    tenant_id: str | None,
    status: Status | None,
    limit: int,
    before: str | None,
) -> list[Batch]:
    start = await start_of(connection, "batches", before)
    return [batch(row) for row in await connection.fetch(_ALL, tenant_id, status, limit, start)]


async def _earlier(connection: Connection, tenant_id: str, wanted: Wanted, mark: bytes) -> Batch:
    """Return what this key has made; raise Conflict if it was made of something else."""
    row = await connection.fetchrow(_OF_KEY, tenant_id, wanted.idempotency_key)
    if row is None:  # deleted since it was in the way: to be tried again
        raise StoreUnavailable
    if bytes(row["fingerprint"]) != mark:
        key = _short(wanted.idempotency_key or "")
        raise Conflict(
            f"Idempotency key '{key}' was previously used with different parameters.",
            param="idempotency_key",
            code="idempotency_key_conflict",
        )
    return batch(row)


async def _cancel(connection: Connection, batch_id: str, tenant_id: str | None) -> Batch:
    row = await connection.fetchrow(_CANCEL, batch_id, tenant_id)
    if row is not None:
        return batch(row)
    row = await connection.fetchrow(_FIND, batch_id, tenant_id)
    if row is None:
        raise _not_found(batch_id)
    found = batch(row)
    if found.status in TERMINAL - {Status.CANCELLED}:
        raise Conflict(f"Cannot cancel batch '{batch_id}' with status '{found.status}'.")
    return found


async def _cancel_recorded(connection: Connection, batch_id: str, actor: str) -> Batch:
    await connection.execute("SELECT FROM gateway.batches WHERE id = $1 FOR UPDATE", batch_id)
    before = await connection.fetchval("SELECT status FROM gateway.batches WHERE id = $1", batch_id)
    found = await _cancel(connection, batch_id, None)
    if found.status != before:
        act = (actor, "batch.cancel", batch_id)
        await write_event(connection, act, {"status": before}, {"status": found.status})
    return found


def _not_found(batch_id: str) -> NotFound:
    return NotFound(f"Batch '{_short(batch_id)}' not found.")


def _too_many(most: int) -> RateLimited:
    return RateLimited(
        f"You have {most} batches that have not ended, which is the most;"
        " wait until one has ended, or cancel one.",
        should_retry=False,
    )


def _short(text: str) -> str:
    return text if len(text) <= MOST_ECHO else text[: MOST_ECHO - 1] + "…"
