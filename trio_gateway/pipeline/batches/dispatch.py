"""The sliding window over a worker's share of the queue.

    feeder      claims lines, reads their texts, hands them over one by one
    runners     each runs one line at a time, from a place in flight to its settled account
    committer   stores results in groups
    leases      keeps what is held alive, and aborts what is not to run any longer

A stop ends the feeder first: what it holds is put back, the runners end the lines that are under
way, and the committer stores the last results.
"""

from __future__ import annotations

from contextlib import ExitStack, suppress
from typing import TYPE_CHECKING

import structlog
import trio

from trio_gateway.core.errors import StoreUnavailable
from trio_gateway.pipeline.batches.committing import Committer
from trio_gateway.pipeline.batches.leasing import Leases
from trio_gateway.pipeline.batches.room import Room
from trio_gateway.pipeline.batches.running import run_line
from trio_gateway.pipeline.batches.texts import Texts
from trio_gateway.pipeline.batches.work import Flight, Later

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from trio_gateway.clients.blobs import Blobs
    from trio_gateway.pipeline.batches.work import Bench
    from trio_gateway.services.batches.lines import Claim, Result
    from trio_gateway.services.batches.turns import Turns

log = structlog.get_logger()

SETTLING = 2  # lines being settled for each that may be in flight
MOST_CLAIMED = 200  # lines in one claim
BRISK, SLOW = 0.5, 2.0  # seconds for a claim, between which its size is right
POLL = 1.0  # seconds between two looks for work that nobody announces, such as a retry
RETRY = 0.5  # seconds until a store that did not answer is asked again
LAST = 5.0  # seconds to put back what was claimed, at a stop


class Dispatcher:
    """Runs lines, at most `concurrency` at a time, until `stop`."""

    def __init__(
        self, bench: Bench, blobs: Blobs, turns: Turns, *, concurrency: int, lease: float
    ) -> None:
        """`lease` is in seconds, as the bench's lines have it."""
        self.leases = Leases(bench.lines, lease)
        # Told how each run of a line ended.
        self.ended: Callable[[str], object] = lambda _: None
        self._bench = bench
        self._blobs = blobs
        self._turns = turns
        self._concurrency = concurrency
        self._places = trio.Semaphore(concurrency)
        self._room = Room()
        self._size = concurrency
        self._feeding = trio.CancelScope()
        self._wake = trio.Event()

    def wake(self) -> None:
        """Look for work now."""
        self._wake.set()

    def stop(self) -> None:
        """Claim nothing more."""
        self._feeding.cancel()

    async def run(self) -> None:
        """Claim, run and store, until stopped and all results are stored."""
        async with trio.open_nursery() as background:
            background.start_soon(self.leases.run)
            committer = Committer(self._bench.lines, self._blobs, self._stored)
            async with trio.open_nursery() as committing:
                committing.start_soon(committer.run)
                async with committer.send:
                    await self._work(committer.send)
            background.cancel_scope.cancel()

    async def _work(self, results: trio.MemorySendChannel[Result]) -> None:
        send, receive = trio.open_memory_channel[Flight](0)
        async with trio.open_nursery() as runners:
            for _ in range(self._concurrency * (1 + SETTLING)):
                runners.start_soon(self._run, receive.clone(), results)
            receive.close()
            with send, self._feeding:
                await self._feed(send)

    async def _feed(self, send: trio.MemorySendChannel[Flight]) -> None:
        while True:
            self._wake = trio.Event()
            asked_at = trio.current_time()
            claim = await self._claim()
            if claim is None:
                with trio.move_on_after(POLL):
                    await self._wake.wait()
                continue
            self.leases.take(claim, asked_at)
            try:
                await self._hand_over(claim, send)
            finally:
                with trio.move_on_after(LAST, shield=True):
                    await self._put_back(claim, self.leases.left(claim))
            self._resize(trio.current_time() - asked_at)

    async def _claim(self) -> Claim | None:
        # A claim that is made and not heard of would keep its lines until the lease is over.
        claim: Claim | None = None
        with trio.CancelScope(shield=True), suppress(StoreUnavailable):
            claim = await self._bench.lines.claim(self._turns, self._size)
        return claim

    async def _hand_over(self, claim: Claim, send: trio.MemorySendChannel[Flight]) -> None:
        texts = Texts(self._blobs, claim)
        for line in claim.lines:
            taken = await self._room.take(line.length)
            try:
                if not self.leases.may_run(claim):
                    return
                flight = Flight(claim, line, await texts.read(line), taken)
                await send.send(flight)
                taken = 0
            except StoreUnavailable:
                self.leases.rest(claim.batch_id, POLL)
                return
            finally:
                self._room.give_back(taken)
            # A send that is cancelled has not handed it over: then it is put back.
            self.leases.begun(claim, line.number)

    def _resize(self, took: float) -> None:
        """Claim more at once where lines are short, fewer where others could help."""
        if took < BRISK:
            self._size = min(MOST_CLAIMED, self._size * 2)
        elif took > SLOW:
            self._size = max(self._concurrency, self._size // 2)

    async def _run(
        self,
        flights: trio.MemoryReceiveChannel[Flight],
        results: trio.MemorySendChannel[Result],
    ) -> None:
        async with flights:
            while True:
                with ExitStack() as place:
                    await self._places.acquire()
                    place.callback(self._places.release)
                    try:
                        flight = await flights.receive()
                    except trio.EndOfChannel:
                        return
                    flight.landed = place.close
                    await self._fly(flight, results)

    async def _fly(self, flight: Flight, results: trio.MemorySendChannel[Result]) -> None:
        self.leases.depart(flight)
        outcome: Result | Later = Later()  # for one that is aborted
        with flight.scope:
            if self.leases.may_run(flight.claim):
                outcome = await run_line(self._bench, flight)
        self.leases.arrive(flight)
        self._room.give_back(flight.room)
        if isinstance(outcome, Later):
            self.ended("retried" if outcome.failed else "deferred")
            await self._again(flight, outcome)
        else:
            self.ended("succeeded" if outcome.succeeded else "failed")
            await results.send(outcome)

    async def _again(self, flight: Flight, later: Later) -> None:
        claim = flight.claim
        if later.rest:
            self.leases.rest(claim.batch_id, later.rest)
            try:
                await self._bench.lines.hold_off(claim.batch_id, later.rest, later.paused)
            except StoreUnavailable:
                log.warning("batch_hold_off_lost", batch_id=claim.batch_id)
        await self._put_back(claim, [flight.line.number], later)

    async def _put_back(
        self, claim: Claim, numbers: Sequence[int], later: Later | None = None
    ) -> None:
        """Give lines back, once the store can be asked."""
        later = later or Later()
        while numbers:
            try:
                await self._bench.lines.release(claim, numbers, later.delay, failed=later.failed)
                break
            except StoreUnavailable:
                log.warning("batch_lines_wait", batch_id=claim.batch_id, lines=len(numbers))
                await trio.sleep(RETRY)
        for number in numbers:
            self.leases.done(claim, number)

    def _stored(self, results: Sequence[Result]) -> None:
        for result in results:
            self.leases.done(result.claim, result.line.number)
