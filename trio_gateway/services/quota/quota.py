"""Windows and budget holds: reserve what a call may cost, settle what it did cost."""

from __future__ import annotations

import math
from contextlib import nullcontext
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import orjson
import trio

from trio_gateway.core.errors import StoreUnavailable
from trio_gateway.services.quota.answers import refusal_of, standing_of
from trio_gateway.services.quota.holds import (
    DISPATCHED,
    QUEUED,
    Hold,
    encode_row,
    refused_row,
    with_backend,
)
from trio_gateway.services.quota.keys import INDEX, call_keys, tenant_keys

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from contextlib import AbstractContextManager

    from trio_gateway.clients.redis import Pending, Redis
    from trio_gateway.core.domain import LedgerRow, Limits, Principal, Standing
    from trio_gateway.services.quota.hydrate import Hydrator

HYDRATIONS = 5
ANNOUNCE_EVERY = 60.0  # seconds; the sweeper unlists a tenant only ten times later
TENANTS_KNOWN = 10_000
UNSETTLED = 20_000  # settles kept for Redis to come back; the sweep finds the rest
WINDOW = 60.0  # seconds


@dataclass(frozen=True, slots=True)
class Ask:
    """What a call wants to reserve; `opaque` is what a sweeper needs for its ledger row.

    `share` is how much of a window the call may fill, in thousandths.
    """

    request_id: str
    principal: Principal
    estimate: int  # prompt tokens
    output: int  # output tokens, at most
    milli_weight: int
    dispatched: bool  # a slot is already in hand
    opaque: dict[str, Any]
    share: int = 1000


@dataclass(frozen=True, slots=True)
class Doubt:
    """A reserve that was sent and not answered: its row, should it have taken a hold after all."""

    row: LedgerRow
    since: float  # trio time


class Quota:
    """Reserves, marks and settles; owns the live holds of this worker."""

    def __init__(
        self,
        redis: Redis,
        hydrator: Hydrator,
        *,
        lease: float,
        min_output: int,
        in_flight: int,
        window: float = WINDOW,
    ) -> None:
        """`lease` and `window` are in seconds, `in_flight` is the cap of open holds per tenant."""
        self._redis = redis
        self._hydrator = hydrator
        self.lease_us = int(lease * 1_000_000)
        self._min_output = min_output
        self._in_flight = in_flight
        self._window_us = int(window * 1_000_000)
        self.live: dict[str, Hold] = {}
        self.doubtful: dict[str, Doubt] = {}
        self.unsettled: dict[str, LedgerRow] = {}
        self._announced: dict[str, float] = {}

    @property
    def reachable_since(self) -> float | None:
        """Since when (trio time) Redis has been connected; None while it is not."""
        return self._redis.connected_at if self._redis.connected else None

    @property
    def trusted(self) -> bool:
        """Whether counters can be read from the ledger where Redis has lost them."""
        return self._hydrator.trusted

    async def reserve(
        self, ask: Ask, guard: Callable[[], AbstractContextManager[Any]] = nullcontext
    ) -> tuple[Hold, Standing]:
        """Take every window and budget together, or nothing.

        Nothing ends the wait for Redis but its answer, which is bounded; a `guard` stands
        around reading the counters from the ledger, which may take longer. Raises RateLimited
        or BudgetExhausted (both with `standing`), or StoreUnavailable.
        """
        tenant, key = ask.principal.tenant, ask.principal.key
        for _ in range(HYDRATIONS):
            reply = await self._reserve_once(ask)
            if reply[0] != b"cold":
                break
            needed = [
                (scope, limits.budget_period.value)
                for scope, limits in (("t", tenant.limits), (f"k:{key.id}", key.limits))
                if limits.budget is not None
            ]
            with guard():
                await self._hydrator.warm(tenant.id, needed)
        else:
            raise StoreUnavailable(retry_after=1)
        if reply[0] == b"no":
            raise refusal_of(ask.principal, reply)
        return self._admitted(ask, reply)

    async def _reserve_once(self, ask: Ask) -> Any:
        tenant, key = ask.principal.tenant, ask.principal.key
        self.announce(tenant.id)
        args = [
            self._redis.run_id,
            ask.request_id,
            key.id,
            ask.estimate,
            ask.output,
            self._min_output,
            ask.milli_weight,
            self.lease_us,
            DISPATCHED if ask.dispatched else QUEUED,
            self._in_flight,
            self._window_us,
            orjson.dumps(ask.opaque),
            *_limit_args(tenant.limits),
            *_limit_args(key.limits),
            ask.share,
        ]
        pending = self._redis.send_script("reserve", call_keys(tenant.id, key.id), args)
        sent = not pending.done
        try:
            # A hang-up must not leave a hold that was committed but not heard of.
            return await self._redis.answer(pending, cancellable=False)
        except StoreUnavailable:
            if sent:
                self._doubt(ask)
            raise

    def _doubt(self, ask: Ask) -> None:
        # The hold may have been taken all the same; `settle_doubts` finds out.
        if len(self.doubtful) < UNSETTLED:
            tenant, key = ask.principal.tenant, ask.principal.key
            row = refused_row(ask.request_id, tenant.id, key.id, ask.opaque, 0, 0)
            self.doubtful[ask.request_id] = Doubt(row, trio.current_time())

    def _admitted(self, ask: Ask, reply: Any) -> tuple[Hold, Standing]:
        started_us, ceiling, cost, text = reply[10:14]
        hold = Hold(
            request_id=ask.request_id,
            tenant_id=ask.principal.tenant.id,
            key_id=ask.principal.key.id,
            started_us=started_us,
            ceiling=ceiling,
            cost=cost,
            text=text.decode(),
            phase=DISPATCHED if ask.dispatched else QUEUED,
            renewed_at=trio.current_time(),
        )
        self.live[ask.request_id] = hold
        return hold, standing_of(ask.principal, reply[1:10], started_us)

    def announce(self, tenant_id: str) -> None:
        """List the tenant for the sweepers, before a hold of it can exist."""
        now = trio.current_time()
        if now - self._announced.get(tenant_id, -math.inf) < ANNOUNCE_EVERY:
            return
        if len(self._announced) >= TENANTS_KNOWN:
            self._announced.clear()
        self._announced[tenant_id] = now
        stamp = datetime.now(UTC).timestamp()
        self._redis.send("ZADD", INDEX, f"{stamp:.6f}", tenant_id)

    def forget_announcements(self) -> None:
        """List every tenant anew; the index may have gone with the server's data."""
        self._announced.clear()

    async def mark_dispatched(self, hold: Hold, backend: str) -> None:
        """Write the phase, and to which backend, before upstream is opened.

        Raises StoreUnavailable, also where the hold was gone: its account may be closed.
        """
        hold.phase, hold.text = DISPATCHED, with_backend(hold.text, backend)
        doubtful = await self.renewed([hold], self.send_renewal([hold]))
        if doubtful or hold.request_id not in self.live:
            raise StoreUnavailable(retry_after=1)

    def send_renewal(self, holds: Sequence[Hold]) -> Pending:
        """Send the renewal of holds of one tenant, with the latest counts."""
        args: list[Any] = [self.lease_us]
        for hold in holds:
            hold.renewals += 1
            final = encode_row(hold.final) if hold.final else ""
            args += [hold.request_id, hold.phase, hold.renewals]
            args += [0, hold.output, final, hold.text]
        return self._redis.send_script("renew", tenant_keys(holds[0].tenant_id), args)

    async def renewed(self, holds: Sequence[Hold], renewal: Pending) -> list[str]:
        """Await a renewal; return the ids of the holds that may have been swept before it.

        Those were gone and had to be put back, had not been renewed for a whole lease, or come
        from before the last connect: a renewal not answered may have put them back, or a server
        rolled back. Raises StoreUnavailable.
        """
        doubtful = [rid.decode() for rid in await self._redis.answer(renewal)]
        for hold in holds:
            late = renewal.sent_at - hold.renewed_at > self.lease_us / 1_000_000
            if late or hold.reconnected:
                doubtful.append(hold.request_id)
            hold.reconnected = False
            # When it was sent: this worker may have stood still before it read the answer.
            hold.renewed_at = max(hold.renewed_at, renewal.sent_at)
        return doubtful

    async def settle(self, rows: Iterable[LedgerRow]) -> None:
        """Settle by stored rows; what Redis does not take now is kept and tried again."""
        sent = []
        for row in rows:
            self.live.pop(row.request_id, None)
            keys = call_keys(row.tenant_id, row.key_id)
            args = [row.request_id, row.charged_tokens]
            sent.append((row, self._redis.send_script("settle", keys, args)))
        for row, pending in sent:
            try:
                await self._redis.answer(pending)
            except StoreUnavailable:
                if len(self.unsettled) < UNSETTLED:
                    self.unsettled[row.request_id] = row
            else:
                self.unsettled.pop(row.request_id, None)


def _limit_args(limits: Limits) -> list[Any]:
    values = (limits.requests_per_minute, limits.tokens_per_minute, limits.budget)
    return [-1 if value is None else value for value in values] + [limits.budget_period.value]
