"""Slots in front of the model servers: bounded, fair between tenants, safe to cancel."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import trio

from trio_gateway.core.errors import Overloaded, UpstreamUnavailable
from trio_gateway.services.slots import Priority, Slots, Waiter

if TYPE_CHECKING:
    from collections.abc import Sequence

RETRY_AFTER = 2.0


class Slot:
    """The right to one call on `backend`, until `release`."""

    __slots__ = ("_backends", "_held", "backend")

    def __init__(self, backends: Backends, backend: str) -> None:
        """Made by Backends only."""
        self.backend = backend
        self._backends = backends
        self._held = True

    def release(self) -> None:
        """Give it to the next in line; a second time is nothing."""
        if self._held:
            self._held = False
            self._backends.give_back(self.backend)


class Backends:
    """The model servers of this worker, and the one line in front of them.

    `slots` counts calls in flight on each backend, `queue_limit` calls waiting for any of
    them, `queue_timeout` is in seconds.
    """

    def __init__(
        self, urls: Sequence[str], slots: int, queue_limit: int, queue_timeout: float
    ) -> None:
        """Begin with all slots free and all backends taken for healthy."""
        self.urls = tuple(urls)
        self._slots = Slots(urls, slots)
        self._queue_limit = queue_limit
        self._queue_timeout = queue_timeout

    @property
    def waiting(self) -> int:
        """How many calls wait for a slot."""
        return self._slots.waiting

    @property
    def lines(self) -> dict[str, int]:
        """How many calls of each priority wait."""
        return self._slots.lines

    @property
    def in_flight(self) -> int:
        """How many slots are taken."""
        return self._slots.in_flight

    @property
    def queue_limit(self) -> int:
        """How many calls may wait."""
        return self._queue_limit

    @property
    def slots(self) -> int:
        """How many slots each backend has."""
        return self._slots.each

    def free(self, backend: str) -> int:
        """How many slots of a backend are free."""
        return self._slots.free(backend)

    def healthy(self, backend: str) -> bool:
        """Whether calls are sent there: known, and not resting after a refused connection."""
        return backend in self.urls and not self._slots.skipped(backend, trio.current_time())

    def try_take(self, candidates: Sequence[str]) -> Slot | None:
        """Take a slot if one is free now and nobody in line could use it."""
        self._grant()
        backend = self._slots.place(candidates, trio.current_time())
        if backend is None:
            return None
        self._slots.occupy(backend)
        return Slot(self, backend)

    async def take(
        self,
        tenant_id: str,
        share: int,
        candidates: Sequence[str],
        priority: Priority = "live",
    ) -> Slot:
        """Take a slot, waiting in line for `queue_timeout` seconds at most.

        Slots go round the tenants, `share` at a time, and to a tenant's calls in the order
        they came; batch calls wait until no live call does. Raises Overloaded, at once when
        the line is full, and UpstreamUnavailable when no candidate is a known backend.
        """
        if slot := self.try_take(candidates):
            return slot
        if not self._slots.knows(candidates):
            raise UpstreamUnavailable(retry_after=RETRY_AFTER)
        if self.waiting >= self._queue_limit:
            raise Overloaded(retry_after=RETRY_AFTER)
        granted = trio.Event()
        waiter = Waiter(tenant_id, share, tuple(candidates), priority, granted.set)
        self._slots.join(waiter)
        try:
            await self._wait(granted)
        except BaseException:
            # Cancelled, perhaps after a slot was granted: then it goes to the next in line.
            if not self._slots.leave(waiter) and waiter.backend is not None:
                self.give_back(waiter.backend)
            raise
        if waiter.backend is None:
            self._slots.leave(waiter)
            raise Overloaded(retry_after=RETRY_AFTER)
        return Slot(self, waiter.backend)

    def report(self, backend: str, *, ok: bool) -> None:
        """Note whether a backend accepted a connection; one that refuses rests for a while."""
        self._slots.report(backend, trio.current_time(), ok=ok)
        self._grant()

    def give_back(self, backend: str) -> None:
        """Free a slot and let the next in line have it. For Slot."""
        self._slots.release(backend)
        self._grant()

    async def _wait(self, granted: trio.Event) -> None:
        deadline = trio.current_time() + self._queue_timeout
        while not granted.is_set() and trio.current_time() < deadline:
            # A backend that has rested long enough comes free without an event.
            recovery = self._slots.recovery(trio.current_time())
            with trio.move_on_at(min(deadline, math.inf if recovery is None else recovery)):
                await granted.wait()
            self._grant()

    def _grant(self) -> None:
        for waiter in self._slots.grant(trio.current_time()):
            waiter.wake()
