"""Finds holds whose worker is gone, writes their ledger rows and settles them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import structlog
import trio

from trio_gateway.core.domain import Basis, LedgerRow, Outcome
from trio_gateway.core.errors import StoreUnavailable
from trio_gateway.core.tokens import charge
from trio_gateway.services.quota.holds import DISPATCHED, parse_found
from trio_gateway.services.quota.keys import HOLDS_PATTERN, INDEX, tenant_keys, tenant_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from trio_gateway.clients.redis import Redis
    from trio_gateway.services.quota.holds import Found
    from trio_gateway.services.quota.quota import Quota
    from trio_gateway.services.quota.renewal import Rows

log = structlog.get_logger()

UNLIST_AFTER = 600.0  # seconds without an announcement; ten times the announcing interval
SCAN_EVERY = 60  # sweeps between two full scans, the backstop for a lost index
PAGE = 500


class Sweeper:
    """One per worker; any number of them may meet on one hold, the ledger decides."""

    def __init__(
        self,
        redis: Redis,
        quota: Quota,
        rows: Rows,
        *,
        interval: float,
        lease: float,
        renewal: float,
    ) -> None:
        """All times in seconds."""
        self._redis = redis
        self._quota = quota
        self._rows = rows
        self._interval = interval
        self._lease = lease
        self._renewal = renewal
        # request id -> (its renewals, since when by this worker's clock). A sweeper wants the
        # count unchanged for a lease of its own time, so that a clock step sweeps nobody alive.
        self._seen: dict[str, tuple[str, float]] = {}
        # Told after each sweep how many holds it saw, and how many of them it settled.
        self.found: Callable[[int, int], object] = lambda _, __: None

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Sweep for ever; does nothing while a store is away, or just came back."""
        task_status.started()
        sweeps = 0
        while True:
            await trio.sleep(self._interval)
            since = trio.current_time() - self._redis.connected_at
            if not self._redis.connected or since < self._renewal + self._interval / 2:
                continue
            try:
                await self.sweep(scan=sweeps % SCAN_EVERY == 0)
            except StoreUnavailable:
                log.debug("sweep_missed")
            sweeps += 1

    async def sweep(self, *, scan: bool = False) -> int:
        """Look at every listed tenant once; return how many holds were settled."""
        if scan:
            await self._scan()
        listed = await self._redis.command("ZRANGE", INDEX, 0, -1, "WITHSCORES")
        now_us = await self._now()
        seen: dict[str, tuple[str, float]] = {}
        swept = open_holds = 0
        for at in range(0, len(listed), 2):
            tenant_id, score = listed[at].decode(), listed[at + 1]
            holds = await self._holds(tenant_id)
            open_holds += len(holds)
            if not holds and now_us / 1_000_000 - float(score) > UNLIST_AFTER:
                await self._redis.script("unlist", [INDEX], [tenant_id, score])
            gone = [found for found in holds if self._abandoned(found, now_us, seen)]
            if gone:
                stored = await self._rows.write([lost_row(found) for found in gone])
                await self._quota.settle(stored)
                log.warning("holds_swept", count=len(gone))
                swept += len(gone)
        self._seen = seen
        self.found(open_holds, swept)
        return swept

    async def _now(self) -> int:
        seconds, micros = await self._redis.command("TIME")
        return int(seconds) * 1_000_000 + int(micros)

    async def _scan(self) -> None:
        cursor = 0
        while True:
            cursor_reply, keys = await self._redis.command(
                "SCAN", cursor, "MATCH", HOLDS_PATTERN, "COUNT", PAGE
            )
            for key in keys:
                await self._redis.command("ZADD", INDEX, "NX", 0, tenant_of(key.decode()))
            cursor = int(cursor_reply)
            if not cursor:
                return

    async def _holds(self, tenant_id: str) -> list[Found]:
        holds_key, leases_key = tenant_keys(tenant_id)[2:4]
        flat = await self._redis.command("HGETALL", holds_key)
        if not flat:
            return []
        leases = await self._redis.command("HGETALL", leases_key)
        lease_of = dict(zip(leases[::2], leases[1::2], strict=True))
        found = []
        for rid, text in zip(flat[::2], flat[1::2], strict=True):
            lease = lease_of.get(rid, b"").decode()
            try:
                found.append(parse_found(tenant_id, rid.decode(), text.decode(), lease))
            except (LookupError, TypeError, ValueError):
                # Of a later release, perhaps, whose workers can read it: no reason to stop here.
                log.exception("hold_unreadable", request_id=rid.decode())
        return found

    def _abandoned(self, found: Found, now_us: int, seen: dict[str, tuple[str, float]]) -> bool:
        if found.request_id in self._quota.live or found.lease_until_us >= now_us:
            return False
        now = trio.current_time()
        renewals, since = self._seen.get(found.request_id, (None, now))
        if renewals != found.renewals:
            since = now
        seen[found.request_id] = (found.renewals, since)
        return now - since >= self._lease


def lost_row(found: Found) -> LedgerRow:
    """Say what is known of a dead worker's call.

    What had ended is written as it ended. Else it is `lost`: free where it was never dispatched,
    and charged for its prompt and the output last seen where it was.
    """
    if found.final is not None:
        return found.final
    opaque = found.opaque
    ran = found.phase == DISPATCHED
    prompt = opaque["estimate"] if ran else 0
    basis = Basis.NONE
    if ran:
        basis = Basis.PARTIAL if found.output else Basis.ESTIMATED
    output = found.output if ran else 0
    return LedgerRow(
        request_id=found.request_id,
        tenant_id=found.tenant_id,
        key_id=found.key_id,
        endpoint=opaque["endpoint"],
        model=opaque["model"],
        status_code=500,
        outcome=Outcome.LOST,
        basis=basis,
        prompt_tokens=prompt,
        completion_tokens=output,
        charged_tokens=charge(prompt + output, opaque["milli"]),
        held_tokens=found.cost,
        backend=opaque.get("backend"),
        started_us=found.started_us,
        ttft_ms=None,
        duration_ms=0.0,
        batch_id=opaque.get("batch_id"),
    )
