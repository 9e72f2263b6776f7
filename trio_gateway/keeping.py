"""Keeps things alive: start, watch, start again with growing pauses, stop when told."""

from __future__ import annotations

import contextlib
import json
import sys
import time
from typing import TYPE_CHECKING, Any, Protocol

import trio

from trio_gateway.embedded.store import StoreFailed

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

FIRST_PAUSE = 0.05
LONGEST_PAUSE = 5.0
# a child that lived this long had no fault of its own: its pauses begin anew
STEADY_SECONDS = 10.0


class StartFailed(Exception):
    """Raised when a child cannot be started the first time; one clear sentence."""


def say(event: str, **fields: Any) -> None:
    """Write one JSON line to stderr."""
    line = json.dumps({"time": round(time.time(), 3), "event": event, **fields})
    sys.stderr.write(line + "\n")
    sys.stderr.flush()


class Stop:
    """Whether the installation was asked to stop, and whether to make haste."""

    def __init__(self) -> None:
        """Nobody asked yet."""
        self.asked = trio.Event()
        self.hastened = trio.Event()
        self._scopes: set[trio.CancelScope] = set()

    def ask(self) -> None:
        """Stop; asked a second time, make haste."""
        if self.asked.is_set():
            self.hastened.set()
        self.asked.set()
        for scope in self._scopes:
            scope.cancel()

    async def listen(self, signals: AsyncIterator[int]) -> None:
        """Take every signal as the wish to stop."""
        async for _ in signals:
            self.ask()

    @contextlib.contextmanager
    def interruptible(self) -> Iterator[None]:
        """Cancel the block when a stop is asked for."""
        with trio.CancelScope() as scope:
            self._scopes.add(scope)
            if self.asked.is_set():
                scope.cancel()
            try:
                yield
            finally:
                self._scopes.discard(scope)


class Kept(Protocol):
    """Something that is started, waited for, and stopped."""

    name: str

    async def begin(self) -> None:
        """Start it and return when it works; raises StartFailed or StoreFailed."""

    async def wait(self) -> int:
        """Return its exit code once it has ended."""

    async def end(self, stop: Stop) -> None:
        """Stop it if it runs, in bounded time."""


async def keep(
    kept: Kept, stop: Stop, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
) -> None:
    """Run it, again and again, until cancelled; raises only if the first start fails."""
    begun = False
    failures = 0
    while True:
        # a stop has closed the sockets that a new worker would inherit
        await trio.lowlevel.checkpoint_if_cancelled()
        since = trio.current_time()
        try:
            await _begin(kept)
            if begun:
                say("restarted", what=kept.name)
            else:
                begun = True
                task_status.started()
            reason = f"ended with exit code {await kept.wait()}"
        except (StartFailed, StoreFailed) as error:
            if not begun:
                raise
            reason = str(error)
        finally:
            with trio.CancelScope(shield=True):
                await kept.end(stop)
        failures = 1 if trio.current_time() - since > STEADY_SECONDS else failures + 1
        pause = min(FIRST_PAUSE * 2 ** (failures - 1), LONGEST_PAUSE)
        say("restarting", what=kept.name, reason=reason, pause=pause)
        await trio.sleep(pause)


async def _begin(kept: Kept) -> None:
    """Start it; no process, memory or descriptor to be had just now is a start that failed."""
    try:
        await kept.begin()
    except OSError as error:
        raise StartFailed(f"{kept.name} cannot be started: {error.strerror or error}") from error
