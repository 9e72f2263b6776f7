"""A receiver of webhooks over real sockets, whose answers a test decides."""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import orjson
import trio

Answer = Callable[[trio.SocketStream], Awaitable[None]]


@dataclass(frozen=True)
class Got:
    """One message as it came."""

    target: str
    headers: dict[str, str]
    body: bytes

    @property
    def id(self) -> str:
        return self.headers["webhook-id"]

    @property
    def json(self) -> Any:
        return orjson.loads(self.body)


class Receiver:
    """What came, and what it is answered: 204 once `answers` is empty."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.got: list[Got] = []
        self.answers: deque[int | bytes | Answer] = deque()
        self.always: int | bytes | Answer = 204
        self._changed = trio.Event()

    @property
    def host(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def url(self) -> str:
        return f"http://{self.host}/hook"

    async def until(self, count: int) -> list[Got]:
        """Wait for so many messages; return them all."""
        with trio.fail_after(60):
            while len(self.got) < count:
                await self._changed.wait()
        return self.got

    async def serve(self, stream: trio.SocketStream) -> None:
        async with stream:
            head, _, body = (await _until(stream, b"", b"\r\n\r\n")).partition(b"\r\n\r\n")
            first, *lines = head.decode().split("\r\n")
            pairs = (line.split(": ", 1) for line in lines)
            headers = {name.lower(): value for name, value in pairs}
            if "content-length" not in headers:
                return  # whoever began to send was stopped
            while len(body) < int(headers["content-length"]):
                body += await stream.receive_some(65536)
            self.got.append(Got(first.split(" ")[1], headers, body))
            answer = self.answers.popleft() if self.answers else self.always
            self._changed.set()
            self._changed = trio.Event()
            with contextlib.suppress(trio.BrokenResourceError):
                await _say(stream, answer)


async def _until(stream: trio.SocketStream, seen: bytes, end: bytes) -> bytes:
    while end not in seen:
        seen += await stream.receive_some(65536) or b"\r\n\r\n"
    return seen


async def _say(stream: trio.SocketStream, answer: int | bytes | Answer) -> None:
    if isinstance(answer, int):
        answer = b"HTTP/1.1 %d Whatever\r\nContent-Length: 0\r\n\r\n" % answer
    if isinstance(answer, bytes):
        await stream.send_all(answer)
    else:
        await answer(stream)


async def silence(stream: trio.SocketStream) -> None:
    """Never answer."""
    await trio.sleep_forever()


@contextlib.asynccontextmanager
async def receiving(port: int = 0) -> AsyncIterator[Receiver]:
    """Listen on loopback until the block ends."""
    listeners = await trio.open_tcp_listeners(port, host="127.0.0.1")
    receiver = Receiver(listeners[0].socket.getsockname()[1])
    async with trio.open_nursery() as nursery:
        await nursery.start(partial(trio.serve_listeners, receiver.serve, listeners))
        yield receiver
        nursery.cancel_scope.cancel()
