"""Keeps this worker's holds alive, and settles what Redis would not take before."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Protocol

import structlog
import trio

from trio_gateway.core.errors import StoreUnavailable
from trio_gateway.services.quota.holds import Hold, parse_found
from trio_gateway.services.quota.keys import tenant_keys

if TYPE_CHECKING:
    from collections.abc import Sequence

    from trio_gateway.clients.redis import Redis
    from trio_gateway.core.domain import LedgerRow
    from trio_gateway.services.quota.quota import Quota

log = structlog.get_logger()


class Rows(Protocol):
    """The part of the ledger that holds need."""

    async def write(self, rows: Sequence[LedgerRow]) -> list[LedgerRow]:
        """Insert rows and return those stored; the first writer of a row wins."""

    async def find(self, request_ids: Sequence[str]) -> dict[str, LedgerRow]:
        """Return the stored rows of these requests."""


class Renewals:
    """Every `interval` seconds: renew, settle again, and resolve doubts."""

    def __init__(self, redis: Redis, quota: Quota, rows: Rows, interval: float) -> None:
        """`rows` is the ledger."""
        self._redis = redis
        self._quota = quota
        self._rows = rows
        self._interval = interval
        self._epoch = ""

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Renew for ever; a store that is away is tried again at the next beat."""
        task_status.started()
        while True:
            if self._redis.connected:
                try:
                    await self._beat()
                except StoreUnavailable:
                    log.debug("renewal_missed")
            await trio.sleep(self._interval)

    async def _beat(self) -> None:
        if self._redis.run_id != self._epoch:
            self._quota.forget_announcements()
            self._epoch = self._redis.run_id
        tenants: dict[str, list[Hold]] = {}
        for hold in self._quota.live.values():
            tenants.setdefault(hold.tenant_id, []).append(hold)
        for holds in tenants.values():
            self._quota.announce(holds[0].tenant_id)
        # All are sent before the first answer is awaited: one round trip carries them.
        sent = [(holds, self._quota.send_renewal(holds)) for holds in tenants.values()]
        for holds, renewal in sent:
            await self._follow_up(holds, await self._quota.renewed(holds, renewal))
        if self._quota.unsettled:
            await self._quota.settle(list(self._quota.unsettled.values()))
        for request_id in list(self._quota.doubtful):
            await self._resolve(request_id)

    async def _follow_up(self, holds: list[Hold], back: list[str]) -> None:
        if not back:
            return
        log.warning("holds_put_back", count=len(back))
        stored = await self._rows.find(back)
        for hold in holds:
            row = stored.get(hold.request_id)
            if row is not None:  # swept while this worker stood still: the account is closed
                hold.swept()
                await self._quota.settle([row])

    async def _resolve(self, request_id: str) -> None:
        tenant_id, row = self._quota.doubtful[request_id]
        holds, leases = tenant_keys(tenant_id)[2:4]
        text = await self._redis.command("HGET", holds, request_id)
        if text is not None:
            lease = await self._redis.command("HGET", leases, request_id)
            found = parse_found(tenant_id, request_id, text.decode(), (lease or b"").decode())
            row = replace(row, started_us=found.started_us, held_tokens=found.cost)
            await self._quota.settle(await self._rows.write([row]))
        self._quota.doubtful.pop(request_id, None)
