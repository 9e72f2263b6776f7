"""One connection's failure stays its own, and a connection that is over ends.

Under hypercorn 0.18 some bytes make the code that reads a connection raise: a path or a method
over HTTP/2 that is not ASCII, a WebSocket header that is not, data for a stream that has been
answered. The exception leaves the connection's task and ends the server, with every call on it;
no application sees it come. Other connections never end: with bytes waiting behind a request
that was cut off, or with an answer over HTTP/2 that nobody took, a task waits for ever.

The seam is the name under which hypercorn's worker finds the class of a connection, and of what
its connections share.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import hypercorn.trio.run
import structlog
import trio
from hypercorn.events import Closed, RawData
from hypercorn.trio.tcp_server import TCPServer

from trio_gateway.clients.parting import PartingContext
from trio_gateway.clients.unreadable import answer_unreadable

if TYPE_CHECKING:
    from hypercorn.events import Event
    from hypercorn.trio.task_group import TaskGroup

    from trio_gateway.clients.unreadable import Words

LINGER = 1.0  # seconds from the close of a connection to the end of its tasks

log = structlog.get_logger()


class IdleTimer:
    """Closes a connection that has been idle for too long, or when the server stops.

    Hypercorn's own starts a task whenever a connection falls idle and cancels it at the next
    request, which is a good part of what a small answer costs; this is one task for all.
    """

    def __init__(self, server: ContainedServer) -> None:
        """Begin when first told to `restart`."""
        self._server = server
        self._scope = trio.CancelScope()
        self._idle = self._begun = self._over = False

    async def restart(self, task_group: TaskGroup, _: Any) -> None:
        """Note that the connection is idle from now on."""
        self._idle = True
        self._scope.deadline = trio.current_time() + self._server.config.keep_alive_timeout
        if not (self._begun or self._over):
            self._begun = True
            task_group.spawn(self._wait)

    async def stop(self) -> None:
        """Note that it is in use."""
        self._idle = False
        self._scope.deadline = math.inf

    def end(self) -> None:
        """Wait no more: the other end has left."""
        self._over = True
        self._scope.cancel()

    async def _wait(self) -> None:
        stopping = False
        while not (stopping or self._over):
            with self._scope:
                await self._server.context.terminated.wait()
                stopping = True  # a request under way ends its connection itself
            if self._idle and not self._over:
                with trio.CancelScope(shield=True):
                    await self._server._initiate_server_close()  # noqa: SLF001 - it is ours
                return
            self._scope = trio.CancelScope()


class ContainedServer(TCPServer):
    """Serves one connection, and nothing of it outlives it."""

    def __init__(self, *args: Any) -> None:
        """Take what hypercorn gives."""
        super().__init__(*args)
        self._life = trio.CancelScope()
        self._gathered: list[bytes] | None = None
        self._timer = IdleTimer(self)
        self.idle_task = self._timer  # type: ignore[assignment]

    async def run(self) -> None:
        """Serve until the connection is over; only Cancelled is raised."""
        try:
            with self._life:
                await super().run()
        except* Exception as group:  # noqa: BLE001 - whatever it is, it concerns this client alone
            # The texts of these hold what the client sent.
            log.warning("connection_failed", errors=sorted(_kinds(group)))

    def gather(self) -> None:
        """Write the answer that follows in one piece; it must be whole, and of a known length."""
        self._gathered = []

    async def protocol_send(self, event: Event) -> None:
        """Write, or close."""
        if self._gathered is not None:
            # Empty is the end of an answer of a known length.
            if isinstance(event, RawData) and event.data:
                self._gathered.append(event.data)
                return
            whole, self._gathered = b"".join(self._gathered), None
            await super().protocol_send(RawData(whole))
            if isinstance(event, RawData):
                return
        await super().protocol_send(event)
        if isinstance(event, Closed):
            self._end_soon()

    async def _read_data(self) -> None:
        try:
            await super()._read_data()
        finally:
            self._timer.end()
            self._end_soon()

    def _end_soon(self) -> None:
        self._life.deadline = min(self._life.deadline, trio.current_time() + LINGER)


def contain(words: Words | None = None) -> None:
    """Serve every connection of this process so, from now on.

    `words` are the application's for what is not HTTP; without them it gets a bare status.
    """
    vars(hypercorn.trio.run).update(TCPServer=ContainedServer, WorkerContext=PartingContext)
    if words is not None:
        answer_unreadable(words)


def _kinds(error: BaseException) -> set[str]:
    if isinstance(error, BaseExceptionGroup):
        return set().union(*map(_kinds, error.exceptions))
    return {type(error).__name__}
