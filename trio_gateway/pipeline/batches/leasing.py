"""What this worker holds of the queue: its claims, the lines under way, and their leases."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import structlog
import trio

from trio_gateway.core.errors import StoreUnavailable

if TYPE_CHECKING:
    from uuid import UUID

    from trio_gateway.pipeline.batches.work import Flight
    from trio_gateway.services.batches.lines import Claim, Lines

log = structlog.get_logger()


@dataclass(slots=True)
class _Held:
    claim: Claim
    numbers: set[int]  # of the lines that have neither been stored nor put back
    waiting: set[int]  # of these, the lines that nobody has begun
    until: float  # trio time; by then the lease has been prolonged or is another's
    rest_until: float = 0.0
    stopped: bool = False


class Leases:
    """Keeps leases alive, and aborts what must not run any longer.

    A line is this worker's from `take` until `done`. It is aborted when its lease is lost, as
    after a long pause of the whole process, and when its batch is cancelled.
    """

    def __init__(self, lines: Lines, lease: float) -> None:
        """`lease` is in seconds, as `lines` has it."""
        self._lines = lines
        self._lease = lease
        self._held: dict[UUID, _Held] = {}
        self._flights: set[Flight] = set()
        self._look = trio.Event()

    def take(self, claim: Claim, asked_at: float) -> None:
        """Hold a claim that was asked for at a trio time."""
        numbers = {line.number for line in claim.lines}
        self._held[claim.token] = _Held(claim, numbers, set(numbers), asked_at + self._lease)

    def done(self, claim: Claim, number: int) -> None:
        """Let go of a line."""
        held = self._held.get(claim.token)
        if held is not None:
            held.numbers.discard(number)
            held.waiting.discard(number)
            if not held.numbers:
                del self._held[claim.token]

    def left(self, claim: Claim) -> list[int]:
        """Return the lines of a claim that nobody has begun."""
        held = self._held.get(claim.token)
        return [] if held is None else sorted(held.waiting)

    def may_run(self, claim: Claim) -> bool:
        """Whether another line of this claim is to be begun now."""
        held, now = self._held.get(claim.token), trio.current_time()
        return held is not None and not held.stopped and held.rest_until <= now < held.until

    def rest(self, batch_id: str, seconds: float) -> None:
        """Begin no line of a batch for a while."""
        for held in self._held.values():
            if held.claim.batch_id == batch_id:
                held.rest_until = max(held.rest_until, trio.current_time() + seconds)

    def begun(self, claim: Claim, number: int) -> None:
        """Note that somebody has begun a line."""
        held = self._held.get(claim.token)
        if held is not None:
            held.waiting.discard(number)

    def depart(self, flight: Flight) -> None:
        """Note that a line is under way, and can be aborted."""
        self._flights.add(flight)

    def arrive(self, flight: Flight) -> None:
        """Note that it is under way no longer; it may still have to be stored."""
        self._flights.discard(flight)

    def changed(self, batch_id: str) -> None:
        """Look soon whether a batch is still to be run."""
        if any(held.claim.batch_id == batch_id for held in self._held.values()):
            self._look.set()

    async def run(self) -> None:
        """Prolong and look for ever."""
        renewal = trio.current_time() + self._lease / 3
        while True:
            with trio.move_on_at(renewal):
                await self._look.wait()
            self._look = trio.Event()
            due = trio.current_time() >= renewal  # however often there was something to look at
            if due:
                renewal = trio.current_time() + self._lease / 3
            try:
                await self._stop()
                if due:
                    await self._renew()
            except StoreUnavailable:
                log.warning("batch_leases_wait")

    async def _renew(self) -> None:
        before = {token: set(held.numbers) for token, held in self._held.items()}
        if not before:
            return
        asked_at = trio.current_time()
        ours = await self._lines.renew(before)
        for token, numbers in before.items():
            held = self._held.get(token)
            if held is None:
                continue
            held.until = asked_at + self._lease
            lost = {n for n in numbers & held.numbers if (held.claim.batch_id, n) not in ours}
            held.stopped = held.stopped or bool(lost)  # whoever has one of them may have the rest
            for flight in self._of(token):
                if flight.line.number in lost:
                    flight.abort()

    async def _stop(self) -> None:
        batch_ids = {held.claim.batch_id for held in self._held.values()}
        if not batch_ids:
            return
        cancelled = await self._lines.stopped(batch_ids)
        over = await self._lines.over(batch_ids - cancelled)
        for token, held in self._held.items():
            held.stopped = held.stopped or held.claim.batch_id in cancelled | over
            if held.claim.batch_id in cancelled:
                for flight in self._of(token):
                    flight.abort()

    def _of(self, token: UUID) -> list[Flight]:
        return [flight for flight in self._flights if flight.claim.token == token]
