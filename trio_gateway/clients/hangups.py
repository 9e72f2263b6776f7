"""Sees clients leave where the HTTP server does not, and cuts off those that never leave.

Hypercorn stops reading a connection when bytes are waiting behind the request, and then no
longer notices the hang-up. The kernel does: one epoll for all of these sockets asks it for
nothing but the end of the connection, so that it costs nothing until a client has left.

Under hypercorn 0.18 the way from an ASGI `send` to the socket leads through its internals:
HTTPStream.app_send -> H11Protocol.stream_send -> TCPServer.protocol_send -> stream. Where that
seam has moved, `socket_of` answers None and the caller does without.
"""

from __future__ import annotations

import contextlib
import select
import socket
import struct
import sys
from typing import TYPE_CHECKING, Any

import trio

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

RESET_ON_CLOSE = struct.pack("ii", 1, 0)

if sys.platform == "linux":
    GONE = select.EPOLLRDHUP | select.EPOLLHUP | select.EPOLLERR | select.EPOLLONESHOT


class _Watched:
    """The callbacks of one socket; several requests may share it."""

    __slots__ = ("callbacks",)

    def __init__(self) -> None:
        self.callbacks: dict[object, Callable[[], None]] = {}

    def fire(self) -> None:
        """Call each once."""
        callbacks, self.callbacks = self.callbacks, {}
        for callback in callbacks.values():
            callback()


class Hangups:
    """Watches client sockets for their end. Only Linux can; elsewhere it watches nothing."""

    def __init__(self) -> None:
        """Open the one epoll; `run` closes it."""
        self._epoll = select.epoll() if sys.platform == "linux" else None
        self._watched: dict[int, _Watched] = {}

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Call the callbacks of clients that leave, until cancelled. Never polls."""
        task_status.started()
        if self._epoll is None:
            await trio.sleep_forever()
            return
        try:
            while True:
                await trio.lowlevel.wait_readable(self._epoll.fileno())
                for fd, _ in self._epoll.poll(0):
                    if watched := self._watched.get(fd):
                        watched.fire()
        finally:
            self._watched.clear()
            self._epoll.close()

    @contextlib.contextmanager
    def watch(self, fd: int, gone: trio.CancelScope | Callable[[], None]) -> Iterator[None]:
        """Cancel the scope, or call once, if the socket's peer leaves during the block.

        A half-close counts as leaving, as it does for hypercorn. A peer that has already left
        is noticed too, and a socket already closed (-1) tells so at once. The callback runs
        between tasks: it must neither wait nor raise.
        """
        token = object()
        call = gone.cancel if isinstance(gone, trio.CancelScope) else gone
        watched = self._register(fd)
        if watched is not None:
            watched.callbacks[token] = call
        elif self._epoll is not None and not self._epoll.closed:
            call()
        try:
            yield
        finally:
            if watched is not None:
                watched.callbacks.pop(token, None)
                self._unregister(fd, watched)

    @property
    def watching(self) -> int:
        """How many sockets are watched."""
        return len(self._watched)

    def _register(self, fd: int) -> _Watched | None:
        if self._epoll is None or self._epoll.closed:
            return None
        try:
            self._epoll.register(fd, GONE)
        except FileExistsError:
            # Another request on this connection. One shot may have been fired already.
            self._epoll.modify(fd, GONE)
            return self._watched.setdefault(fd, _Watched())
        except (OSError, ValueError):  # closed already
            return None
        # The kernel forgets a socket when it is closed: what is still listed under this number
        # belongs to one that is no more.
        if stale := self._watched.pop(fd, None):
            stale.fire()
        self._watched[fd] = watched = _Watched()
        return watched

    def _unregister(self, fd: int, watched: _Watched) -> None:
        if watched.callbacks or self._watched.get(fd) is not watched:
            return
        del self._watched[fd]
        if self._epoll is not None:
            with contextlib.suppress(OSError, ValueError):
                self._epoll.unregister(fd)


def socket_of(send: Any) -> trio.SocketStream | None:
    """Find the client's TCP stream behind an ASGI `send`, or None.

    None for HTTP/2, where hypercorn sees a reset itself, and under any other server.
    """
    stream = getattr(server_of(send), "stream", None)
    if isinstance(stream, trio.SSLStream):
        stream = stream.transport_stream
    return stream if isinstance(stream, trio.SocketStream) else None


def server_of(send: Any) -> Any:
    """Find what serves the client's connection, on the same way and with the same limits."""
    http = getattr(send, "__self__", None)
    scope = getattr(http, "scope", None)
    if not isinstance(scope, dict) or not str(scope.get("http_version")).startswith("1"):
        return None
    protocol = getattr(getattr(http, "send", None), "__self__", None)
    return getattr(getattr(protocol, "send", None), "__self__", None)


def abort(stream: trio.SocketStream) -> None:
    """Reset the connection now, whatever hypercorn is doing with it.

    Its sends are shielded from cancellation; closing the socket under them ends them.
    """
    with contextlib.suppress(OSError, trio.ClosedResourceError):
        stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)
    stream.socket.close()
