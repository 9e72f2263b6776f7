"""The engine of one worker: it validates batches, runs their lines and ends them.

Nothing here is remembered: every step is a lease in PostgreSQL that any worker takes up when
its holder is gone. Being told of a change makes the engine quick; looking by itself makes it sure.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import structlog
import trio

from trio_gateway.core.errors import StoreUnavailable

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from trio_gateway.pipeline.batches.dispatch import Dispatcher

log = structlog.get_logger()

POLL = 1.0  # seconds between two looks
PAUSE = 5.0  # seconds after something unforeseen


class Steps(Protocol):
    """Takes one step for one batch."""

    async def once(self) -> bool:
        """Return False if there was nothing to do; may raise StoreUnavailable."""


class Engine:
    """Runs until `stop`; `stopped` is set when nothing is under way any more."""

    def __init__(self, validator: Steps, finisher: Steps, dispatcher: Dispatcher) -> None:
        """Take the parts, all of them idle."""
        self.stopped = trio.Event()
        self._steps = (validator, finisher)
        self._dispatcher = dispatcher
        self._stopping = False
        self._wake = trio.Event()

    def changed(self, batch_id: str) -> None:
        """Hear that a batch is new, or that its status changed, or that its lines are done."""
        self._wake.set()
        self._dispatcher.wake()
        self._dispatcher.leases.changed(batch_id)

    def stop(self) -> None:
        """Begin nothing more; what is under way may end."""
        self._stopping = True
        self._wake.set()
        self._dispatcher.stop()

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Work until stopped."""
        task_status.started()
        try:
            async with trio.open_nursery() as nursery:
                for step in self._steps:
                    nursery.start_soon(self._repeat, step.once)
                nursery.start_soon(self._dispatcher.run)
        finally:
            self.stopped.set()

    async def _repeat(self, once: Callable[[], Awaitable[bool]]) -> None:
        while not self._stopping:
            if self._wake.is_set():
                self._wake = trio.Event()
            wake = self._wake
            pause, busy = POLL, False
            try:
                busy = await once()
            except* StoreUnavailable:
                log.debug("batches_wait_for_stores")
            except* Exception:
                log.exception("batch_step_broke")
                pause = PAUSE
            if not busy and not self._stopping:
                with trio.move_on_after(pause):
                    await wake.wait()
