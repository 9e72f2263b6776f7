"""HTTP by hand over a socket: for requests that no client library would send."""

from __future__ import annotations

import contextlib
import socket
import struct
from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass
from typing import Any

import orjson
import trio

LIMIT = 30.0  # seconds for any one step
RESET_ON_CLOSE = struct.pack("ii", 1, 0)


@dataclass(frozen=True)
class Answer:
    """One answer; header names are lower case, in the order they came."""

    status: int
    headers: list[tuple[str, str]]
    body: bytes

    def header(self, name: str) -> str | None:
        """Return the first value of a header."""
        return next((value for found, value in self.headers if found == name), None)

    def json(self) -> Any:
        """Return the body, parsed."""
        return orjson.loads(self.body)


class RawClient:
    """One connection on which anything may be said."""

    def __init__(self, stream: trio.SocketStream) -> None:
        """Take the connected stream."""
        self.stream = stream
        self._unread = b""

    async def send(self, data: bytes) -> None:
        """Write bytes; a server that has already closed is no error."""
        with trio.fail_after(LIMIT), contextlib.suppress(trio.BrokenResourceError):
            await self.stream.send_all(data)

    async def answer(self, *, bodyless: bool = False) -> Answer:
        """Read one answer; `bodyless` for HEAD."""
        with trio.fail_after(LIMIT):
            while True:
                head = await self._until(b"\r\n\r\n")
                first, *lines = head.decode("latin-1").split("\r\n")
                status = int(first.split(" ")[1])
                if status != 100:
                    break
            headers = [
                (n.lower(), v.strip()) for n, _, v in (line.partition(":") for line in lines)
            ]
            body = b"" if bodyless or status in {101, 204, 304} else await self._body(dict(headers))
            return Answer(status, headers, body)

    async def until(self, mark: bytes) -> bytes:
        """Read up to and including the mark, and return it all."""
        with trio.fail_after(LIMIT):
            return await self._until(mark) + mark

    async def closed(self, limit: float = LIMIT) -> bytes:
        """Read until the server closes, and return what it still said."""
        with trio.fail_after(limit):
            while await self._more():
                pass
        said, self._unread = self._unread, b""
        return said

    def leave(self, *, reset: bool = False) -> None:
        """Hang up, by FIN or by RST."""
        if reset:
            self.stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)
        self.stream.socket.close()

    async def _body(self, headers: dict[str, str]) -> bytes:
        if headers.get("transfer-encoding") == "chunked":
            parts = []
            while size := int(await self._until(b"\r\n"), 16):
                parts.append(await self._exactly(size))
                await self._exactly(2)
            await self._exactly(2)
            return b"".join(parts)
        if "content-length" in headers:
            return await self._exactly(int(headers["content-length"]))
        while await self._more():
            pass
        said, self._unread = self._unread, b""
        return said

    async def _more(self) -> bytes:
        try:
            data = await self.stream.receive_some(65536)
        except trio.BrokenResourceError:
            data = b""
        self._unread += data
        return data

    async def _until(self, mark: bytes) -> bytes:
        while mark not in self._unread:
            if not await self._more():
                raise EOFError("the server closed the connection")
        found, _, self._unread = self._unread.partition(mark)
        return found

    async def _exactly(self, size: int) -> bytes:
        while len(self._unread) < size:
            if not await self._more():
                raise EOFError("the server closed the connection")
        found, self._unread = self._unread[:size], self._unread[size:]
        return found


@contextlib.asynccontextmanager
async def connect(port: int, source: str | None = None) -> AsyncIterator[RawClient]:
    """Open a connection, from another loopback address where `source` says so."""
    with trio.fail_after(LIMIT):
        stream = await trio.open_tcp_stream("127.0.0.1", port, local_address=source)
    try:
        yield RawClient(stream)
    finally:
        with trio.CancelScope(shield=True):
            await stream.aclose()


def request(
    line: str | bytes,
    headers: Iterable[tuple[str, str]] | dict[str, str] = (),
    body: bytes | None = None,
) -> bytes:
    """Write a request; Host is added, and Content-Length where there is a body."""
    pairs = list(headers.items()) if isinstance(headers, dict) else list(headers)
    if body is not None:
        pairs.append(("Content-Length", str(len(body))))
    first = line if isinstance(line, bytes) else line.encode("latin-1")
    lines = [f"{name}: {value}".encode("latin-1") for name, value in [("Host", "gateway"), *pairs]]
    return b"\r\n".join([first + b" HTTP/1.1", *lines, b"", body or b""])


async def ask(
    port: int,
    line: str | bytes,
    headers: Iterable[tuple[str, str]] | dict[str, str] = (),
    body: bytes | None = None,
) -> Answer:
    """Send one request on a connection of its own and return the answer."""
    async with connect(port) as client:
        await client.send(request(line, headers, body))
        head = line[:4] in {"HEAD", b"HEAD"}
        return await client.answer(bodyless=head)
