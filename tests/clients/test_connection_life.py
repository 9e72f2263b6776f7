"""A connection of hypercorn's, as the gateway serves it: idle time, and answers in one write."""

from __future__ import annotations

import contextlib
from functools import partial

import trio
from hypercorn.config import Config
from hypercorn.trio import serve

from trio_gateway.clients.containment import contain
from trio_gateway.clients.hangups import server_of

REQUEST = b"GET / HTTP/1.1\r\nhost: x\r\n\r\n"
IDLE = 0.3


async def app(scope, receive, send):
    """Answer in one write, after a pause longer than a connection may be idle."""
    while scope["type"] == "lifespan":
        message = await receive()
        await send({"type": message["type"] + ".complete"})
        if message["type"] == "lifespan.shutdown":
            return
    await trio.sleep(2 * IDLE)
    server_of(send).gather()
    headers = [(b"content-length", b"4")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": b"body", "more_body": False})


@contextlib.asynccontextmanager
async def connected():
    """Serve, and connect."""
    contain()
    config = Config()
    config.bind = ["127.0.0.1:0"]
    config.keep_alive_timeout = IDLE
    stop = trio.Event()
    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            (bind,) = await nursery.start(
                partial(serve, app, config, shutdown_trigger=stop.wait, mode="asgi")
            )
            stream = await trio.open_tcp_stream("127.0.0.1", int(bind.rsplit(":", 1)[1]))
            async with stream:
                yield stream, stop
            stop.set()


async def test_a_connection_is_closed_when_idle_for_too_long_and_not_while_it_works():
    """However often it has worked in between."""
    async with connected() as (stream, _):
        for _ in range(2):
            began = trio.current_time()
            await stream.send_all(REQUEST)
            assert (await stream.receive_some()).startswith(b"HTTP/1.1 200")
        assert await stream.receive_some() == b""
        assert trio.current_time() - began > 2 * IDLE + IDLE / 2  # its work, and then its rest


async def test_a_gathered_answer_comes_in_one_piece():
    """Head and body are one write."""
    async with connected() as (stream, _):
        await stream.send_all(REQUEST)
        answer = bytes(await stream.receive_some())
        assert answer.startswith(b"HTTP/1.1 200")
        assert answer.endswith(b"\r\n\r\nbody")


async def test_an_idle_connection_is_closed_when_the_server_stops():
    """At once, not when its time is over."""
    async with connected() as (stream, stop):
        stop.set()
        assert await stream.receive_some() == b""
