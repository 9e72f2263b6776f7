"""A door between the gateway and a store, that can be shut, and can swallow what comes back."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING
from urllib.parse import parse_qs, unquote, urlsplit, urlunsplit

import trio

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

PORTS = {"redis": 6379, "postgresql": 5432}


@dataclass
class Door:
    """One address that leads to a store, or nowhere."""

    target: str
    url: str = ""
    open: bool = True
    deaf: bool = False  # requests get through, answers do not
    deaf_from: bytes = b""  # as the first request that has this in it gets through
    swallowed: trio.Event = field(default_factory=trio.Event)
    _lines: set[trio.CancelScope] = field(default_factory=set)

    def shut(self) -> None:
        """Break every connection and refuse new ones."""
        self.open = False
        self.cut()

    def cut(self) -> None:
        """Break every connection; new ones are welcome."""
        for line in tuple(self._lines):
            line.cancel()

    def swallow(self) -> None:
        """Let requests pass and lose the answers; `swallowed` is set at the first one lost."""
        self.deaf = True
        self.swallowed = trio.Event()

    def swallow_from(self, words: bytes) -> None:
        """As `swallow`, beginning with the answer to the first request that has `words` in it."""
        self.deaf_from = words
        self.swallowed = trio.Event()

    def reopen(self) -> None:
        """Behave again."""
        self.open, self.deaf, self.deaf_from = True, False, b""

    async def serve(self, near: trio.SocketStream) -> None:
        """Carry one connection."""
        if not self.open:
            await trio.aclose_forcefully(near)
            return
        far: trio.SocketStream | None = None
        with trio.CancelScope() as scope:
            self._lines.add(scope)
            try:
                far = await _connect(self.target)
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._carry, near, far, scope, self._hears)
                    nursery.start_soon(self._carry, far, near, scope, lambda _: self.deaf)
            finally:
                self._lines.discard(scope)
                with trio.CancelScope(shield=True):
                    await trio.aclose_forcefully(near)
                    if far is not None:
                        await trio.aclose_forcefully(far)

    def _hears(self, request: bytes | bytearray) -> bool:
        """Note what is asked; no request is lost."""
        if self.deaf_from and self.deaf_from in request:
            self.deaf = True
        return False

    async def _carry(
        self,
        source: trio.SocketStream,
        sink: trio.SocketStream,
        scope: trio.CancelScope,
        lost: Callable[[bytes | bytearray], bool],
    ) -> None:
        with contextlib.suppress(trio.BrokenResourceError, trio.ClosedResourceError):
            async for piece in source:
                if lost(piece):
                    self.swallowed.set()
                else:
                    await sink.send_all(piece)
        scope.cancel()


@contextlib.asynccontextmanager
async def open_door(url: str) -> AsyncIterator[Door]:
    """Listen on loopback in front of the store at `url`."""
    async with trio.open_nursery() as nursery:
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        port = listeners[0].socket.getsockname()[1]
        door = Door(url)
        door.url = _through(url, port)
        nursery.start_soon(trio.serve_listeners, door.serve, listeners)
        try:
            yield door
        finally:
            nursery.cancel_scope.cancel()


def _through(url: str, port: int) -> str:
    parts = urlsplit(url)
    if parts.scheme == "unix":
        return f"redis://127.0.0.1:{port}/0"
    user = f"{parts.netloc.rpartition('@')[0]}@" if "@" in parts.netloc else ""
    return urlunsplit((parts.scheme, f"{user}127.0.0.1:{port}", parts.path, "", ""))


async def _connect(url: str) -> trio.SocketStream:
    parts = urlsplit(url)
    if parts.scheme == "unix":
        return await trio.open_unix_socket(unquote(parts.path))
    folder = parse_qs(parts.query).get("host", [""])[0]
    if folder.startswith("/"):
        return await trio.open_unix_socket(f"{folder}/.s.PGSQL.5432")
    assert parts.hostname is not None
    return await trio.open_tcp_stream(parts.hostname, parts.port or PORTS[parts.scheme])
