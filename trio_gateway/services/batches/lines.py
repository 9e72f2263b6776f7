"""The queue of lines: leases, results that count once, and what is put back.

A line is leased to one worker at a time; whatever the worker says about it later counts only
while its lease token still stands in the row. So a line may run twice, after a crash or a long
pause, but is recorded once.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any
from uuid import UUID, uuid4

from trio_gateway.services.batches.turns import Candidate

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Sequence

    from trio_gateway.clients.postgres import Connection, Postgres
    from trio_gateway.services.batches.turns import Turns

MOST_CANDIDATES = 1000
MOST_EXPIRED = 500  # leases looked after in one go

# A lease that ran out is a failed attempt: a line that ends its worker must not loop for ever.
# Not so where the database was away at the lease's end: nobody could have prolonged it.
_EXPIRE = f"""
WITH expired AS (
    SELECT batch_id, line, (lease_until > pg_postmaster_start_time())::integer AS failed
    FROM gateway.batch_lines WHERE state = 'leased' AND lease_until < now()
    ORDER BY lease_until LIMIT {MOST_EXPIRED} FOR UPDATE SKIP LOCKED
), moved AS (
    UPDATE gateway.batch_lines l SET attempts = attempts + e.failed,
        lease_token = NULL, lease_until = NULL,
        state = CASE WHEN attempts + e.failed >= $1 THEN 'failed' ELSE 'queued' END
    FROM expired e WHERE l.batch_id = e.batch_id AND l.line = e.line
    RETURNING l.batch_id, l.state
)
UPDATE gateway.batches b SET failed = b.failed + m.lines
FROM (SELECT batch_id, count(*) AS lines FROM moved WHERE state = 'failed' GROUP BY batch_id) m
WHERE b.id = m.batch_id
"""  # noqa: S608 - constants alone
_CANDIDATES = f"""
SELECT b.id AS batch_id, b.tenant_id, t.weight_share AS share, m.model,
    extract(epoch FROM now())::double precision AS now
FROM gateway.batches b JOIN gateway.tenants t ON t.id = b.tenant_id, unnest(b.models) AS m (model)
WHERE b.status = 'in_progress' AND b.expires_at > now()
    AND (b.resume_at IS NULL OR b.resume_at <= now())
    AND EXISTS (
        SELECT FROM gateway.batch_lines l
        WHERE l.batch_id = b.id AND l.model = m.model AND l.state = 'queued'
            AND l.not_before <= now()
    )
ORDER BY b.expires_at, b.ordinal LIMIT {MOST_CANDIDATES}
"""  # noqa: S608 - constants alone
# `next` in a CTE of its own: as a subquery it might be run again for each row, past its limit.
_TAKE = """
WITH next AS MATERIALIZED (
    SELECT line FROM gateway.batch_lines
    WHERE batch_id = $1 AND model = $2 AND state = 'queued' AND not_before <= now()
    ORDER BY line LIMIT $5 FOR UPDATE SKIP LOCKED
), taken AS (
    UPDATE gateway.batch_lines l SET state = 'leased', lease_token = $3, lease_until = now() + $4
    FROM next WHERE l.batch_id = $1 AND l.line = next.line
    RETURNING l.line, l.custom_id, l.start, l.length, l.attempts
)
SELECT t.*, b.key_id, b.endpoint, b.input_blob FROM taken t, gateway.batches b
WHERE b.id = $1 ORDER BY t.line
"""
_RENEW = """
UPDATE gateway.batch_lines SET lease_until = now() + $2
WHERE state = 'leased' AND lease_token = ANY($1::uuid[]) RETURNING batch_id, line
"""
_STOPPED = """
SELECT id FROM gateway.batches WHERE id = ANY($1::text[]) AND status <> 'in_progress'
"""
_OVER = "SELECT id FROM gateway.batches WHERE id = ANY($1::text[]) AND expires_at <= now()"
_RELEASE = """
UPDATE gateway.batch_lines SET state = 'queued', lease_token = NULL, lease_until = NULL,
    attempts = attempts + $4, not_before = now() + $5
WHERE batch_id = $1 AND lease_token = $2 AND line = ANY($3::integer[]) AND state = 'leased'
"""
_HOLD_OFF = """
UPDATE gateway.batches SET resume_at = greatest(resume_at, now() + $2), paused = $3
WHERE id = $1 AND status = 'in_progress'
"""
# The batch first, as everyone else who locks both does.
_LOCK = "SELECT FROM gateway.batches WHERE id = $1 FOR UPDATE"
_RECORD = """
WITH given AS (
    SELECT * FROM unnest($2::integer[], $3::uuid[], $4::boolean[], $5::text[],
        $6::bigint[], $7::integer[], $8::bigint[], $9::bigint[])
        AS g (line, token, succeeded, request_id, start, length, input_tokens, output_tokens)
), recorded AS (
    UPDATE gateway.batch_lines l SET lease_token = NULL, lease_until = NULL,
        state = CASE WHEN g.succeeded THEN 'succeeded' ELSE 'failed' END,
        request_id = g.request_id, result_blob = $10, result_start = g.start,
        result_length = g.length
    FROM given g
    WHERE l.batch_id = $1 AND l.line = g.line AND l.lease_token = g.token AND l.state = 'leased'
    RETURNING g.succeeded, g.input_tokens, g.output_tokens
), sums AS (
    SELECT count(*) FILTER (WHERE succeeded) AS completed,
        count(*) FILTER (WHERE NOT succeeded) AS failed, count(*) AS lines,
        coalesce(sum(input_tokens), 0) AS input_tokens,
        coalesce(sum(output_tokens), 0) AS output_tokens
    FROM recorded
)
UPDATE gateway.batches b SET completed = b.completed + s.completed, failed = b.failed + s.failed,
    input_tokens = b.input_tokens + s.input_tokens,
    output_tokens = b.output_tokens + s.output_tokens,
    -- a line that was begun before the pause says nothing of its end
    paused = CASE WHEN s.completed > 0 AND (b.resume_at IS NULL OR b.resume_at <= now())
        THEN NULL ELSE b.paused END
FROM sums s WHERE b.id = $1 AND s.lines > 0 RETURNING s.lines
"""


@dataclass(frozen=True, slots=True)
class LeasedLine:
    """One line that is this worker's to run: where it stands, and how often it failed so far."""

    number: int
    custom_id: str
    start: int
    length: int
    attempts: int


@dataclass(frozen=True, slots=True)
class Claim:
    """Lines of one batch and one model, leased under one token."""

    token: UUID
    batch_id: str
    tenant_id: str
    key_id: str
    endpoint: str
    input_blob: str
    model: str
    lines: tuple[LeasedLine, ...]


@dataclass(frozen=True, slots=True)
class Result:
    """How one line ended; `text` is its line in the output or error file, without a break."""

    claim: Claim
    line: LeasedLine
    succeeded: bool
    request_id: str
    text: bytes
    input_tokens: int = 0
    output_tokens: int = 0


class Lines:
    """Claims, leases and results. Every method may raise StoreUnavailable."""

    def __init__(self, postgres: Postgres, lease: float, attempts: int) -> None:
        """`lease` is in seconds; after `attempts` failed ones a line is given up."""
        self._postgres = postgres
        self._lease = timedelta(seconds=lease)
        self._attempts = attempts

    async def claim(self, turns: Turns, most: int) -> Claim | None:
        """Lease up to `most` lines of the batch whose turn it is; None where there are none."""
        return await self._postgres.transact(self._claim, turns, most)

    async def renew(self, tokens: Collection[UUID]) -> set[tuple[str, int]]:
        """Prolong the leases of these tokens; return the lines that are still theirs."""
        rows = await self._postgres.fetch(_RENEW, list(tokens), self._lease)
        return {(row["batch_id"], row["line"]) for row in rows}

    async def stopped(self, batch_ids: Iterable[str]) -> set[str]:
        """Return which of these batches are to run no longer."""
        rows = await self._postgres.fetch(_STOPPED, list(batch_ids))
        return {row["id"] for row in rows}

    async def over(self, batch_ids: Iterable[str]) -> set[str]:
        """Return which of these batches are past their window: lines under way may end."""
        rows = await self._postgres.fetch(_OVER, list(batch_ids))
        return {row["id"] for row in rows}

    async def release(
        self, claim: Claim, numbers: Sequence[int], delay: float = 0, *, failed: bool = False
    ) -> None:
        """Put lines back, not to be claimed for `delay` seconds."""
        await self._postgres.fetch(
            _RELEASE,
            claim.batch_id,
            claim.token,
            list(numbers),
            int(failed),
            timedelta(seconds=delay),
        )

    async def hold_off(self, batch_id: str, seconds: float, paused: str | None = None) -> None:
        """Let nobody claim from a batch for a while; `paused` is what its object says about it."""
        await self._postgres.fetch(_HOLD_OFF, batch_id, timedelta(seconds=seconds), paused)

    async def record(self, batch_id: str, blob: str, results: Sequence[Result]) -> int:
        """Store where the results of one batch's lines are, in `blob` one after the other.

        Returns how many counted; the rest were no longer this worker's to record.
        """
        return await self._postgres.transact(self._record, batch_id, blob, results)

    async def _claim(self, connection: Connection, turns: Turns, most: int) -> Claim | None:
        await connection.execute(_EXPIRE, self._attempts)
        rows = await connection.fetch(_CANDIDATES)
        candidates = [_candidate(row) for row in rows]
        token = uuid4()
        while chosen := turns.choose(candidates, rows[0]["now"] if rows else 0):
            taken = await connection.fetch(
                _TAKE, chosen.batch_id, chosen.model, token, self._lease, most
            )
            if taken:
                turns.served(chosen, len(taken))
                return _claim(token, chosen, taken)
            candidates.remove(chosen)  # somebody else was faster
        return None

    async def _record(
        self, connection: Connection, batch_id: str, blob: str, results: Sequence[Result]
    ) -> int:
        await connection.execute(_LOCK, batch_id)
        starts = [0]
        for result in results[:-1]:
            starts.append(starts[-1] + len(result.text) + 1)
        counted = await connection.fetchval(
            _RECORD,
            batch_id,
            [result.line.number for result in results],
            [result.claim.token for result in results],
            [result.succeeded for result in results],
            [result.request_id for result in results],
            starts,
            [len(result.text) for result in results],
            [result.input_tokens for result in results],
            [result.output_tokens for result in results],
            blob,
        )
        return int(counted or 0)


def joined(results: Sequence[Result]) -> bytes:
    """Return the blob that `record` describes: every text and a line break."""
    return b"".join([result.text + b"\n" for result in results])


def _claim(token: UUID, chosen: Candidate, taken: Sequence[Any]) -> Claim:
    return Claim(
        token=token,
        batch_id=chosen.batch_id,
        tenant_id=chosen.tenant_id,
        key_id=taken[0]["key_id"],
        endpoint=taken[0]["endpoint"],
        input_blob=taken[0]["input_blob"],
        model=chosen.model,
        lines=tuple(_leased(row) for row in taken),
    )


def _candidate(row: Any) -> Candidate:
    return Candidate(row["batch_id"], row["tenant_id"], row["share"], row["model"])


def _leased(row: Any) -> LeasedLine:
    return LeasedLine(row["line"], row["custom_id"], row["start"], row["length"], row["attempts"])
