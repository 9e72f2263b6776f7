"""Clients that leave, under real hypercorn and Quart-Trio over real sockets."""

from __future__ import annotations

import os
import socket
import struct
from contextlib import asynccontextmanager
from contextvars import ContextVar
from functools import partial

import pytest
import trio
import trio.testing
from hypercorn.config import Config
from hypercorn.trio import serve
from quart import request
from quart_trio import QuartTrio
from quart_trio.asgi import TrioASGIHTTPConnection

from trio_gateway.clients.hangups import Hangups, abort, socket_of

GET = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
POST = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\n{}"
PIPELINED = POST + POST


SEND: ContextVar[object] = ContextVar("SEND")


class Connection(TrioASGIHTTPConnection):
    """Quart-Trio's connection, lending `send` to the handler."""

    def _create_request_from_scope(self, send):
        SEND.set(send)
        return super()._create_request_from_scope(send)


def client_of_call():
    """Find the stream of the client whose call this is."""
    stream = socket_of(SEND.get())
    assert stream is not None
    return stream


class App(QuartTrio):
    """One route whose handler is the test's."""

    asgi_http_class = Connection

    def __init__(self, handler):
        super().__init__(__name__)
        self.add_url_rule("/", "root", handler, methods=["GET", "POST"])
        self.config["RESPONSE_TIMEOUT"] = None


@asynccontextmanager
async def serving(handler, hangups=None, **options):
    """Run hypercorn with the handler, and the watcher; yield the port."""
    config = Config()
    config.bind = ["127.0.0.1:0"]
    config.errorlog = None
    config.graceful_timeout = 0.5
    for name, value in options.items():
        setattr(config, name, value)
    stop = trio.Event()
    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            if hangups is not None:
                await nursery.start(hangups.run)
            start = partial(serve, App(handler), config, shutdown_trigger=stop.wait)
            binds = await nursery.start(start)
            yield Served(int(binds[0].rpartition(":")[2]), stop)
            nursery.cancel_scope.cancel()


class Served:
    """Where it listens, and how it is told to stop."""

    def __init__(self, port, stop):
        self.port = port
        self.stop = stop


async def connected(port, sent):
    """Open a client connection and send bytes."""
    stream = await trio.open_tcp_stream("127.0.0.1", port)
    await stream.send_all(sent)
    return stream


async def drained(stream):
    """Read to the end."""
    while await stream.receive_some():
        pass


def reset(stream):
    """Leave with a RST."""
    stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    stream.socket.close()


def leave(stream, way):
    """End the connection in one of the ways a client can."""
    if way == "fin":
        stream.socket.close()
    elif way == "half-close":
        stream.socket.shutdown(socket.SHUT_WR)
    else:
        reset(stream)


@pytest.mark.parametrize("way", ["fin", "rst", "half-close"])
@pytest.mark.parametrize("sent", [GET, POST, PIPELINED, GET + b"junk"])
async def test_a_client_that_leaves_is_noticed_at_once(way, sent):
    """With bytes behind the request or without, by FIN, RST or half-close."""
    hangups = Hangups()
    entered, called = trio.Event(), trio.Event()

    async def handler():
        with trio.CancelScope(shield=True):  # hypercorn's own notice does not count here
            with hangups.watch(client_of_call().socket.fileno(), called.set):
                entered.set()
                await called.wait()
            return b""

    async with serving(handler, hangups) as served:
        client = await connected(served.port, sent)
        await entered.wait()
        await trio.testing.wait_all_tasks_blocked(0.01)
        assert not called.is_set()
        began = trio.current_time()
        leave(client, way)
        await called.wait()
        assert trio.current_time() - began < 1
        client.socket.close()


async def test_a_hangup_cancels_a_scope_behind_pipelined_bytes():
    """The case hypercorn does not see: the handler's scope is cancelled all the same."""
    hangups = Hangups()
    entered, cancelled = trio.Event(), trio.Event()

    async def handler():
        number = client_of_call().socket.fileno()
        with trio.CancelScope() as scope, hangups.watch(number, scope):
            entered.set()
            await trio.sleep_forever()
        assert scope.cancelled_caught
        cancelled.set()
        return b""

    async with serving(handler, hangups) as served:
        client = await connected(served.port, PIPELINED)
        await entered.wait()
        client.socket.close()
        await cancelled.wait()


async def test_a_client_that_stays_is_never_taken_for_one_that_left():
    """Requests one after the other on one connection, each watched, none called."""
    hangups = Hangups()
    called = []

    async def handler():
        with hangups.watch(client_of_call().socket.fileno(), lambda: called.append(1)):
            await request.get_data()
            return b"hello"

    async with serving(handler, hangups) as served:
        client = await connected(served.port, b"")
        for _ in range(20):
            await client.send_all(POST)
            answer = b""
            while not answer.endswith(b"hello"):
                answer += await client.receive_some()
        await client.aclose()
    assert called == []
    assert hangups.watching == 0


async def test_a_wedged_client_is_cut_off_although_sends_are_shielded():
    """A client that never reads blocks hypercorn's send; `abort` ends it with a reset."""
    handled = trio.Event()
    streams = []

    async def handler():
        streams.append(client_of_call())

        async def flood():
            try:
                while True:
                    yield b"x" * 65536
            finally:
                handled.set()

        return flood()

    async with serving(handler) as served:
        client = await connected(served.port, GET)
        assert await client.receive_some(100)
        await trio.testing.wait_all_tasks_blocked(0.1)
        assert not handled.is_set()
        abort(streams[0])
        await handled.wait()
        abort(streams[0])  # once more is nothing
        async with client:
            with pytest.raises(trio.BrokenResourceError):
                await drained(client)


async def test_the_seam_into_hypercorn_has_not_moved():
    """Fails when hypercorn changes its insides: without it hang-ups go unseen. Mend socket_of."""
    seen = []

    async def handler():
        stream = socket_of(SEND.get())
        peer = stream.socket.getpeername() if stream else None
        seen.append((type(stream), peer))
        return b""

    async with serving(handler) as served:
        client = await connected(served.port, GET)
        await client.receive_some()
        me = client.socket.getsockname()
        await client.aclose()
    assert seen == [(trio.SocketStream, me)]


def test_elsewhere_there_is_no_socket_to_be_found():
    """Another server, HTTP/2 or a wrapped `send`: None, and never an exception."""

    class Http2:
        scope = {"http_version": "2"}  # noqa: RUF012

        async def send(self, message):
            pass

    for send in (None, Http2().send, Hangups().watch, partial(Http2().send), lambda _: None):
        assert socket_of(send) is None


@asynccontextmanager
async def watcher():
    """Run a watcher by itself."""
    hangups = Hangups()
    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            await nursery.start(hangups.run)
            yield hangups
            nursery.cancel_scope.cancel()


async def test_each_callback_is_called_once_and_all_of_one_socket():
    """Several calls on one connection all hear of its end."""
    ours, theirs = socket.socketpair()
    called = []
    async with watcher() as hangups:
        with (
            ours,
            hangups.watch(ours.fileno(), lambda: called.append("a")),
            hangups.watch(ours.fileno(), lambda: called.append("b")),
        ):
            with hangups.watch(ours.fileno(), lambda: called.append("ended before")):
                pass
            assert hangups.watching == 1
            theirs.close()
            await trio.testing.wait_all_tasks_blocked(0.05)
            assert sorted(called) == ["a", "b"]
            with hangups.watch(ours.fileno(), lambda: called.append("late")):
                await trio.testing.wait_all_tasks_blocked(0.05)
        assert sorted(called) == ["a", "b", "late"]
        assert hangups.watching == 0


async def test_a_number_used_again_belongs_to_its_new_socket():
    """The old socket was closed while watched and its number given to another."""
    called = []
    async with watcher() as hangups:
        ours, theirs = socket.socketpair()
        number = ours.fileno()
        old = hangups.watch(number, lambda: called.append("old"))
        old.__enter__()
        ours.close()
        spare, far = socket.socketpair()
        if far.fileno() == number:
            far, spare = spare, far
        elif spare.fileno() != number:  # something else was closed meanwhile
            os.dup2(spare.fileno(), number)
            spare.close()
            spare = socket.socket(fileno=number)
        assert spare.fileno() == number
        with hangups.watch(number, lambda: called.append("new")):
            assert called == ["old"]  # its socket is no more
            old.__exit__(None, None, None)
            assert hangups.watching == 1
            far.close()
            await trio.testing.wait_all_tasks_blocked(0.05)
        assert called == ["old", "new"]
        spare.close()
        theirs.close()


async def test_a_closed_socket_tells_so_at_once_and_a_stopped_watcher_nothing():
    """Neither a closed socket nor a watcher that has stopped breaks a call."""
    ours, theirs = socket.socketpair()
    number = ours.fileno()
    with theirs:
        async with watcher() as hangups:
            with ours, hangups.watch(number, lambda: None):
                pass
            called = []
            for closed in (number, -1):
                with hangups.watch(closed, lambda: called.append("closed")):
                    assert hangups.watching == 0
            assert called == ["closed", "closed"]
            late = hangups.watch(theirs.fileno(), lambda: None)
            late.__enter__()
        late.__exit__(None, None, None)
        with hangups.watch(theirs.fileno(), lambda: None):
            assert hangups.watching == 0
