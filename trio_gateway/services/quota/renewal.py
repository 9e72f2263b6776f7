"""Keeps this worker's holds alive, and settles what Redis would not take before."""

from __future__ import annotations

from dataclasses import replace
from itertools import islice
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

DOUBTS = 1_000  # looked into at one beat


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
        self._connected_at = -1.0
        self._doubtful: dict[str, Hold] = {}  # perhaps swept: to be looked up

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Renew for ever; a store that is away is tried again at the next beat."""
        task_status.started()
        while True:
            if self._redis.connected:
                try:
                    await self.beat()
                except StoreUnavailable:
                    log.debug("renewal_missed")
            await trio.sleep(self._interval)

    async def beat(self) -> None:
        """Do everything once; raises StoreUnavailable."""
        if self._redis.connected_at != self._connected_at:
            # What was announced may have been lost with the connection, or with the data.
            self._quota.forget_announcements()
            self._connected_at = self._redis.connected_at
            for hold in self._quota.live.values():
                hold.reconnected = True
        await self._renew()
        if self._quota.unsettled:
            await self._quota.settle(list(self._quota.unsettled.values()))
        if self._doubtful:
            await self._look_up()
        if self._quota.doubtful:
            await self._resolve()

    async def _renew(self) -> None:
        tenants: dict[str, list[Hold]] = {}
        for hold in self._quota.live.values():
            tenants.setdefault(hold.tenant_id, []).append(hold)
        for tenant_id in tenants:
            self._quota.announce(tenant_id)
        # All are sent before the first answer is awaited: one round trip carries them.
        sent = [(holds, self._quota.send_renewal(holds)) for holds in tenants.values()]
        for holds, renewal in sent:
            ids = set(await self._quota.renewed(holds, renewal))
            self._doubtful |= {hold.request_id: hold for hold in holds if hold.request_id in ids}

    async def _look_up(self) -> None:
        log.warning("holds_in_doubt", count=len(self._doubtful))
        self._quota.forget_announcements()
        stored = await self._rows.find(list(self._doubtful))
        for request_id, row in stored.items():
            hold = self._doubtful[request_id]
            # Swept while this worker stood still: the account is closed. A call that is over
            # has its own row under way, or this is it.
            if hold.final is None:
                hold.swept()
                await self._quota.settle([row])
        self._doubtful.clear()

    async def _resolve(self) -> None:
        """Close the accounts of calls that were refused because Redis did not answer."""
        asked = [
            (doubt, self._redis.send("HGET", tenant_keys(doubt.row.tenant_id)[2], request_id))
            for request_id, doubt in islice(self._quota.doubtful.items(), DOUBTS)
        ]
        rows = []
        for doubt, pending in asked:
            row = doubt.row
            text = await self._redis.answer(pending)
            if text is not None:
                found = parse_found(row.tenant_id, row.request_id, text.decode(), "")
                rows.append(replace(row, started_us=found.started_us, held_tokens=found.cost))
            elif trio.current_time() - doubt.since > self._quota.lease_us / 1_000_000:
                # By now it cannot be under way any more.
                del self._quota.doubtful[row.request_id]
        if rows:
            await self._quota.settle(await self._rows.write(rows))
            for row in rows:
                del self._quota.doubtful[row.request_id]
