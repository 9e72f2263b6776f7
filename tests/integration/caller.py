"""A client on a bare socket, which can leave, stall or say too much; and how a call must end."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import orjson
import trio

from trio_gateway.services.quota.keys import tenant_keys

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from tests.world import World

SOON = 1.0  # seconds; the promise for most things that happen by themselves
PATIENCE = 30.0  # seconds for a step that nobody promised a time for
RESET = struct.pack("ii", 1, 0)


@dataclass(frozen=True)
class Shape:
    """One way to ask: a route, and whether the answer is to be streamed."""

    path: str
    stream: bool

    def body(self, text: str = "one two three", **more: Any) -> dict[str, Any]:
        """Return what to POST."""
        said = {"messages": [{"role": "user", "content": text}]}
        return {"model": "llama3.2", "stream": self.stream} | said | more


SHAPES = {
    "native": Shape("/api/chat", stream=True),
    "openai": Shape("/v1/chat/completions", stream=True),
    "whole": Shape("/v1/chat/completions", stream=False),
}
NATIVE, OPENAI, WHOLE = SHAPES.values()


class Caller:
    """One connection; `received` is everything that came."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self.stream = stream
        self.received = b""

    async def until(self, mark: bytes) -> bytes:
        """Read until the mark is there, and return everything read."""
        with trio.fail_after(PATIENCE):
            while mark not in self.received:
                piece = await self.stream.receive_some()
                assert piece, f"closed before {mark!r}: {self.received[-300:]!r}"
                self.received += piece
        return self.received

    async def rest(self) -> bytes:
        """Read to the end of the connection."""
        with trio.fail_after(PATIENCE):
            while piece := await self.stream.receive_some():
                self.received += piece
        return self.received

    @property
    def status(self) -> int:
        """The status received."""
        return int(self.received.split(b" ", 2)[1])

    async def leave(self) -> float:
        """Close in the ordinary way; return when."""
        now = time.monotonic()
        await self.stream.aclose()
        return now

    def reset(self) -> float:
        """Break the connection; return when."""
        self.stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        now = time.monotonic()
        self.stream.socket.close()
        return now


@contextlib.asynccontextmanager
async def connected(world: World, *, buffer: int | None = None) -> AsyncIterator[Caller]:
    """Connect; `buffer` bounds what the kernel takes in, in bytes."""
    sock = trio.socket.socket()
    if buffer is not None:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
    await sock.connect(("127.0.0.1", world.port))
    stream = trio.SocketStream(sock)
    try:
        yield Caller(stream)
    finally:
        sock.close()


@contextlib.asynccontextmanager
async def calling(
    world: World, shape: Shape, *, key: Any = None, buffer: int | None = None, **more: Any
) -> AsyncIterator[Caller]:
    """Connect and send one whole call."""
    async with connected(world, buffer=buffer) as caller:
        await caller.stream.send_all(request(world, shape.path, shape.body(**more), key))
        yield caller


def request(world: World, path: str, body: Any, key: Any = None, *, length: int = 0) -> bytes:
    """Write a request; `length` announces more than is sent."""
    data = orjson.dumps(body)
    lines = [
        f"POST {path} HTTP/1.1",
        "Host: gateway",
        f"Authorization: {world.auth(key)['authorization']}",
        f"Content-Length: {length or len(data)}",
    ]
    return "\r\n".join([*lines, "", ""]).encode() + data


async def until(condition: Callable[[], Any], limit: float = PATIENCE) -> None:
    """Wait until the condition holds."""
    with trio.fail_after(limit):
        while not condition():  # noqa: ASYNC110 - what is waited for has no event
            await trio.sleep(0.002)


async def until_rows(world: World, query: str, *args: Any, limit: float = PATIENCE) -> None:
    """Wait until a query has rows."""
    with trio.fail_after(limit):
        while not await world.rows(query, *args):  # noqa: ASYNC110 - as above
            await trio.sleep(0.002)


@contextlib.asynccontextmanager
async def locked(world: World, table: str) -> AsyncIterator[Callable[[], Awaitable[None]]]:
    """Let nobody else read a table; yields a function that waits until somebody wants to."""
    release = False

    async def lock(connection: Any, task_status: trio.TaskStatus[None]) -> None:
        await connection.execute(f"LOCK TABLE {table} IN ACCESS EXCLUSIVE MODE")
        task_status.started()
        while not release:  # noqa: ASYNC110 - the event would be another loop's
            await asyncio.sleep(0.002)

    async def hold(task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        await world.postgres.transact(lock, task_status)

    async def waiting() -> None:
        wanted = "SELECT FROM pg_locks WHERE NOT granted AND relation = $1::text::regclass"
        await until_rows(world, wanted, table)

    async with trio.open_nursery() as nursery:
        await nursery.start(hold)
        try:
            yield waiting
        finally:
            release = True


async def dispatched(world: World, calls: int = 1) -> Any:
    """Wait until so many generations have been asked for; return the last."""
    with trio.fail_after(PATIENCE):
        await world.sim.until(lambda sim: sim.started >= calls and sim.generations[-1].body)
    return world.sim.generations[-1]


async def idle(world: World, tenant_id: str | None = None) -> None:
    """Wait until nothing of any call is left: no generation, no call, no slot, no hold."""
    with trio.fail_after(PATIENCE):
        await world.sim.until(lambda sim: not sim.open)
    await world.settled()
    backends = world.gateway.gate.backends
    assert (backends.in_flight, backends.waiting) == (0, 0)
    assert not world.gateway.gate.quota.live
    holds = tenant_keys(tenant_id or world.tenant["id"])[2]
    assert await world.gateway.redis.command("HLEN", holds) == 0


async def ended(world: World) -> dict[str, Any]:
    """Return the one ledger row, once nothing of the call is left."""
    await idle(world)
    (row,) = await world.ledger()
    return row


def lines(content: bytes) -> list[Any]:
    """Read NDJSON."""
    return [orjson.loads(line) for line in content.splitlines()]


def events(content: bytes) -> list[Any]:
    """Read server-sent events; `[DONE]` stays text, comments are left out."""
    found = []
    for block in content.decode().split("\n\n"):
        if block.startswith("data: "):
            text = block.removeprefix("data: ")
            found.append(text if text == "[DONE]" else orjson.loads(text))
    return found


def error_of(shape: Shape, content: bytes) -> Any:
    """Return what an answer that broke says last: a code, or Ollama's text."""
    if shape is WHOLE:
        return orjson.loads(content)["error"]["code"]
    if shape is OPENAI:
        assert b"[DONE]" not in content
        return events(content)[-1]["error"]["code"]
    last = lines(content)[-1]
    assert set(last) == {"error"}
    return last["error"]
