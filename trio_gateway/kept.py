"""What a supervisor keeps: embedded stores, workers, and a companion such as the simulator."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from typing import TYPE_CHECKING

import trio

from trio_gateway.embedded.child import Child
from trio_gateway.embedded.store import START_SECONDS, Store, StoreFailed
from trio_gateway.keeping import StartFailed, Stop

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

POLL_SECONDS = 0.01
# longer than a worker takes to cut, settle and close (its own timer ends it at 17)
DRAIN_MARGIN = 18.0
HASTE_SECONDS = 5.0
COMPANION_SECONDS = 5.0


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
        raise StoreFailed(f"the embedded {self.name} did not start: {self.store.last_words()}")

    async def wait(self) -> int:
        """As Kept."""
        return await _running(self.store.child).wait()

    async def end(self, stop: Stop) -> None:
        """As Kept."""
        del stop
        await trio.to_thread.run_sync(self.store.stop)
        self.store.release()


class KeptWorker:
    """One worker process, which writes to a pipe when it serves.

    Most of its start is importing, for which it needs nobody: `preload` starts it ahead of
    what it depends on, and it goes on when `begin` writes to another pipe.
    """

    def __init__(
        self,
        application: str,
        environ: Mapping[str, str],
        listening: Sequence[int],
        drain_timeout: float,
        *,
        slot: str = "w0",
        name: str = "worker",
    ) -> None:
        """Take the descriptors that the worker inherits; `drain_timeout` is in seconds.

        `slot` tells it from its siblings; whoever replaces it has the same one.
        """
        self.name = name
        self._slot = slot
        self._application = application
        self._environ = environ
        self._listening = listening
        self._drain_timeout = drain_timeout
        self._child: Child | None = None
        self._ready: trio.lowlevel.FdStream | None = None
        self._go: trio.lowlevel.FdStream | None = None

    def preload(self) -> None:
        """Start the process; it imports the application and then waits for `begin`."""
        with contextlib.ExitStack() as theirs:
            reading, ready = os.pipe()
            theirs.callback(os.close, ready)
            self._ready = trio.lowlevel.FdStream(reading)
            go, writing = os.pipe()
            theirs.callback(os.close, go)
            self._go = trio.lowlevel.FdStream(writing)
            self._child = Child(
                [sys.executable, "-P", "-m", "trio_gateway.worker", self._application],
                environ={
                    **self._environ,
                    "_TRIO_GATEWAY_LISTEN_FDS": ",".join(map(str, self._listening)),
                    "_TRIO_GATEWAY_READY_FD": str(ready),
                    "_TRIO_GATEWAY_GO_FD": str(go),
                    "_TRIO_GATEWAY_SLOT": self._slot,
                },
                fds=[*self._listening, ready, go],
                # stdout belongs to the supervisor's one line
                output=2,
            )

    async def begin(self) -> None:
        """As Kept."""
        if self._child is None:
            self.preload()
        child = _running(self._child)
        if self._ready is None or self._go is None:
            raise RuntimeError("a worker begins once")
        async with self._ready as ready, self._go as go:
            self._ready = self._go = None
            with trio.move_on_after(START_SECONDS):
                # one that ended already is found out by the read
                with contextlib.suppress(trio.BrokenResourceError):
                    await go.send_all(b"go")
                if await ready.receive_some(16):
                    return
                code = await child.wait()
                raise StartFailed(f"{self._what} ended at its start with exit code {code}")
        raise StartFailed(f"{self._what} was not ready after {START_SECONDS:.0f} seconds")

    @property
    def _what(self) -> str:
        return "a worker" if self.name == "worker" else f"the {self.name}"

    async def wait(self) -> int:
        """As Kept."""
        return await _running(self._child).wait()

    async def end(self, stop: Stop) -> None:
        """Let live calls end for the drain time, which a second signal shortens."""
        for pipe in (self._ready, self._go):
            if pipe is not None:
                await pipe.aclose()
        self._ready = self._go = None
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
