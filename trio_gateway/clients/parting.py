"""A server that stops lets go of its connections a moment after its listener.

A proxy asks another server when a new connection is refused, but not when a request is lost that
it has sent on a connection it kept: that may have been done. So kept connections outlive the
listener by `PARTING`. What arrives on them meanwhile is answered, and told `Connection: close`;
only those that nobody used are then closed by us.

The seam is the name under which hypercorn's worker finds the class of its context.
"""

from __future__ import annotations

import math

import trio
from hypercorn.trio.worker_context import EventWrapper, WorkerContext

PARTING = 1.0  # seconds that a kept connection outlives the listener


class Parting(EventWrapper):
    """Hypercorn's event that the server has stopped, seen by connections `PARTING` later."""

    def __init__(self) -> None:
        """Nothing has stopped yet."""
        super().__init__()
        self._over = math.inf

    async def set(self) -> None:
        """Begin the moment."""
        self._over = trio.current_time() + PARTING
        await super().set()

    async def wait(self) -> None:
        """Return when it is over."""
        await super().wait()
        await trio.sleep_until(self._over)

    def is_set(self) -> bool:
        """Whether it is over."""
        return trio.current_time() >= self._over


class PartingContext(WorkerContext):
    """What hypercorn's connections of one worker share."""

    def __init__(self, max_requests: int | None) -> None:
        """As hypercorn's, but for the one event."""
        super().__init__(max_requests)
        self.terminated = Parting()
