"""A simulated Ollama on a real socket, and ways to talk to it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import httpx
import orjson
import pytest
import trio

from trio_gateway.simulator.app import create_app
from trio_gateway.simulator.server import serve

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from trio_gateway.simulator.app import Simulator


@dataclass
class Served:
    """A simulation and a client that reaches it over TCP."""

    app: Simulator
    url: str
    client: httpx.AsyncClient

    @property
    def port(self) -> int:
        return httpx.URL(self.url).port or 0


@pytest.fixture
async def served() -> AsyncIterator[Served]:
    app = create_app(control_routes=True)
    async with trio.open_nursery() as nursery:
        url = await nursery.start(serve, app)
        async with httpx.AsyncClient(base_url=url, timeout=60) as client:
            yield Served(app, url, client)
        nursery.cancel_scope.cancel()


@pytest.fixture
async def local() -> AsyncIterator[tuple[Simulator, httpx.AsyncClient]]:
    app = create_app(control_routes=True)
    async with in_process(app) as client:
        yield app, client


def in_process(app: Any) -> httpx.AsyncClient:
    """A client that calls the application without a socket."""
    transport = httpx.ASGITransport(app=app)
    return httpx.AsyncClient(transport=transport, base_url="http://ollama")


async def post_raw(port: int, body: dict[str, Any]) -> trio.SocketStream:
    """Send a chat request on a socket of its own and leave the answer on it."""
    data = orjson.dumps(body)
    head = f"POST /api/chat HTTP/1.1\r\nhost: a\r\ncontent-length: {len(data)}\r\n\r\n"
    stream = await trio.open_tcp_stream("127.0.0.1", port)
    await stream.send_all(head.encode() + data)
    return stream


def ask(text: str = "one two", model: str = "llama3.2", **more: Any) -> dict[str, Any]:
    """A chat request."""
    return {"model": model, "messages": [{"role": "user", "content": text}], **more}


def lines(body: bytes) -> list[Any]:
    """The objects of an NDJSON body."""
    return [orjson.loads(line) for line in body.splitlines()]
