"""Keeps children alive: start, watch, start again with growing pauses, stop in order."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Protocol

import trio

from trio_gateway.embedded.child import Child
from trio_gateway.embedded.store import START_SECONDS, Store, StoreFailed

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence

FIRST_PAUSE = 0.05
LONGEST_PAUSE = 5.0
# a child that lived this long had no fault of its own: its pauses begin anew
STEADY_SECONDS = 10.0
POLL_SECONDS = 0.01
DRAIN_MARGIN = 10.0
HASTE_SECONDS = 5.0
COMPANION_SECONDS = 5.0


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

    @contextmanager
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
            await kept.begin()
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


class KeptStore:
    """An embedded store; it comes back on the same sockets and data."""

    def __init__(self, store: Store) -> None:
        """Nothing is started yet."""
        self.store = store
        self.name = store.name

    async def begin(self) -> None:
        """As Kept."""
        await trio.to_thread.run_sync(self.store.prepare)
        child = self.store.spawn()
        with trio.move_on_after(START_SECONDS):
            while child.exit_code is None:
                if await trio.to_thread.run_sync(self.store.ready, child):
                    return
                await trio.sleep(POLL_SECONDS)
        raise StoreFailed(f"{self.name} did not start: {self.store.last_words()}")

    async def wait(self) -> int:
        """As Kept."""
        return await _running(self.store.child).wait()

    async def end(self, stop: Stop) -> None:
        """As Kept."""
        del stop
        await trio.to_thread.run_sync(self.store.stop)
        self.store.release()


class KeptWorker:
    """One worker process, which writes to a pipe when it serves."""

    def __init__(
        self,
        application: str,
        environ: Mapping[str, str],
        listening: Sequence[int],
        drain_timeout: float,
    ) -> None:
        """Take the descriptors that the worker inherits; `drain_timeout` is in seconds."""
        self.name = "worker"
        self._application = application
        self._environ = environ
        self._listening = listening
        self._drain_timeout = drain_timeout
        self._child: Child | None = None

    async def begin(self) -> None:
        """As Kept."""
        reading, writing = os.pipe()
        async with trio.lowlevel.FdStream(reading) as pipe:
            try:
                self._child = self._spawn(writing)
            finally:
                os.close(writing)
            with trio.move_on_after(START_SECONDS):
                said = await pipe.receive_some(16)
                if said:
                    return
                code = await self._child.wait()
                raise StartFailed(f"a worker ended at its start with exit code {code}")
        raise StartFailed(f"a worker was not ready after {START_SECONDS:.0f} seconds")

    def _spawn(self, ready: int) -> Child:
        return Child(
            [sys.executable, "-P", "-m", "trio_gateway.worker", self._application],
            environ={
                **self._environ,
                "_TRIO_GATEWAY_LISTEN_FDS": ",".join(map(str, self._listening)),
                "_TRIO_GATEWAY_READY_FD": str(ready),
            },
            fds=[*self._listening, ready],
            # stdout belongs to the supervisor's one line
            output=2,
        )

    async def wait(self) -> int:
        """As Kept."""
        return await _running(self._child).wait()

    async def end(self, stop: Stop) -> None:
        """Let live calls end for the drain time, which a second signal shortens."""
        child, self._child = self._child, None
        if child is not None:
            child.send(signal.SIGTERM)
            async with trio.open_nursery() as nursery:
                nursery.cancel_scope.deadline = (
                    trio.current_time() + self._drain_timeout + DRAIN_MARGIN
                )
                nursery.start_soon(_hasten, child, stop, nursery.cancel_scope)
                await child.wait()
                nursery.cancel_scope.cancel()
            await _destroy(child)


async def _hasten(child: Child, stop: Stop, scope: trio.CancelScope) -> None:
    await stop.hastened.wait()
    child.send(signal.SIGTERM)
    scope.deadline = min(scope.deadline, trio.current_time() + HASTE_SECONDS)


class KeptCompanion:
    """A child that serves on an inherited socket, such as the simulated Ollama."""

    def __init__(
        self, name: str, command: Sequence[str], fds: Sequence[int], answers: Callable[[], bool]
    ) -> None:
        """`answers` tells, blocking for a short while, whether it serves."""
        self.name = name
        self._command = command
        self._fds = fds
        self._answers = answers
        self._child: Child | None = None

    async def begin(self) -> None:
        """As Kept."""
        self._child = child = Child(self._command, fds=self._fds, output=2)
        with trio.move_on_after(START_SECONDS):
            while child.exit_code is None:
                if await trio.to_thread.run_sync(self._answers, abandon_on_cancel=True):
                    return
                await trio.sleep(POLL_SECONDS)
        raise StartFailed(f"the {self.name} did not start")

    async def wait(self) -> int:
        """As Kept."""
        return await _running(self._child).wait()

    async def end(self, stop: Stop) -> None:
        """As Kept."""
        del stop
        child, self._child = self._child, None
        if child is not None:
            child.send(signal.SIGTERM)
            with trio.move_on_after(COMPANION_SECONDS):
                await child.wait()
            await _destroy(child)


async def _destroy(child: Child) -> None:
    if child.exit_code is None:
        child.send(signal.SIGKILL)
        await child.wait()


def _running(child: Child | None) -> Child:
    if child is None:
        raise RuntimeError("begin comes before wait")
    return child
