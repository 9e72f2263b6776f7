"""The door to Ollama: lines in batches, limits, and every failure under our own name."""

from __future__ import annotations

import json
from contextlib import asynccontextmanager
from functools import partial

import httpx
import pytest
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st

from deploy.staging.programs import free_port
from trio_gateway.clients.refusals import refusal
from trio_gateway.clients.transport import LeanTransport
from trio_gateway.clients.upstream import Timeouts, Upstream
from trio_gateway.core.errors import (
    InvalidCall,
    ModelNotFound,
    UpstreamError,
    UpstreamTimeout,
    UpstreamUnavailable,
)

BASE = "http://ollama.test:11434"
QUICK = Timeouts(connect=2, first_byte=0.1, idle=0.1, metadata=0.1)


class Pieces(httpx.AsyncByteStream):
    """A body made of given pieces; None never comes, an exception is raised."""

    def __init__(self, *pieces):
        self.pieces = list(pieces)
        self.closed = False

    def __aiter__(self):
        return self

    async def __anext__(self):
        if not self.pieces:
            raise StopAsyncIteration
        piece = self.pieces.pop(0)
        if piece is None:
            await trio.sleep_forever()
        if isinstance(piece, Exception):
            raise piece
        return piece

    async def aclose(self):
        self.closed = True


class Scripted(httpx.AsyncBaseTransport):
    """A transport at the public seam: answers with one status, headers and pieces."""

    def __init__(self, *pieces, status=200, headers=None):
        self.body = Pieces(*pieces)
        self.status = status
        self.headers = headers
        self.requests = []

    async def handle_async_request(self, request):
        self.requests.append(request)
        return httpx.Response(self.status, headers=self.headers, stream=self.body)


async def lines_of(transport, **options):
    """Open and return the batches."""
    async with Upstream(transport, QUICK, **options).open(BASE, "/api/chat", b"{}") as reply:
        return [lines async for lines in reply]


async def test_all_lines_of_one_read_come_in_one_batch():
    """What arrived together is handed over together, and halves wait for their other half."""
    transport = Scripted(b"a\nb\nc", b"c\nd\n", b"", b"e", b"f", b"g\n\n\n", b"\n", b"h")
    assert await lines_of(transport) == [[b"a", b"b"], [b"cc", b"d"], [b"efg"], [b"h"]]
    assert transport.body.closed


@given(st.lists(st.binary(min_size=1).filter(lambda line: b"\n" not in line)), st.data())
def test_lines_survive_any_cut_into_reads(lines, data):
    """However the bytes are cut, the lines are the same, the last one unterminated or not."""
    body = b"\n".join(lines) + (b"\n" if data.draw(st.booleans()) else b"")
    cuts = sorted(data.draw(st.lists(st.integers(0, len(body)))))
    pieces = [body[a:b] for a, b in zip([0, *cuts], [*cuts, len(body)], strict=True)]
    batches = trio.run(lines_of, Scripted(*pieces))
    assert [line for batch in batches for line in batch] == lines
    assert all(batches)


@pytest.mark.parametrize("pieces", [[b"x" * 11], [b"x" * 6] * 2, [b"a\n" + b"x" * 11 + b"\nb"]])
async def test_a_line_over_the_limit_ends_the_reply(pieces):
    """An endless line is refused and the connection closed."""
    transport = Scripted(*pieces, None)
    with pytest.raises(UpstreamError):
        await lines_of(transport, line_limit=10)
    assert transport.body.closed


async def test_lines_up_to_the_limit_pass_though_their_batch_is_longer():
    """The limit is for a line, not for a batch."""
    transport = Scripted(b"x" * 10 + b"\n" + b"y" * 10 + b"\n" + b"z" * 4, b"z" * 6)
    batches = await lines_of(transport, line_limit=10)
    assert batches == [[b"x" * 10, b"y" * 10], [b"z" * 10]]


async def test_the_request_carries_minimal_headers():
    """Nothing but what the gateway itself says reaches upstream."""
    transport = Scripted(b"{}\n")
    await lines_of(transport)
    request = transport.requests[0]
    assert str(request.url) == BASE + "/api/chat"
    assert dict(request.headers) == {
        "host": "ollama.test:11434",
        "content-type": "application/json",
        "accept": "application/x-ndjson, application/json",
        "accept-encoding": "identity",
        "user-agent": "trio-gateway",
        "content-length": "2",
    }


@pytest.mark.parametrize(
    ("status", "expected"),
    [
        (400, InvalidCall),
        (404, ModelNotFound),
        (429, UpstreamUnavailable),
        (503, UpstreamUnavailable),
        *[(status, UpstreamError) for status in (201, 204, 301, 307, 401, 403, 499, 500, 502)],
    ],
)
async def test_a_status_becomes_our_own_error(status, expected):
    """One class for each status, and upstream's words are never in it."""
    transport = Scripted(b'{"error":"SECRET words"}', status=status)
    with pytest.raises(expected) as caught:
        await lines_of(transport)
    assert type(caught.value) is expected
    assert "SECRET" not in repr(caught.value) + str(caught.value.__dict__)
    assert transport.body.closed


@pytest.mark.parametrize(
    ("words", "code", "named"),
    [
        ("the input length exceeds the context length", "context_length_exceeded", "context"),
        (
            "the prompt is longer than the context length currently available",
            "context_length_exceeded",
            "context",
        ),
        ("request (9) exceeds the available context size", "context_length_exceeded", "context"),
        ('"m" does not support thinking', "invalid_request", "thinking"),
        ('"m" does not support chat', "invalid_request", "chat"),
        ("registry.ollama.ai/library/m:1 does not support tools", "invalid_request", "tools"),
        ('"m" does not support generate', "invalid_request", "completion"),
        ("this model does not support embeddings", "invalid_request", "embeddings"),
        ("something else about m", "invalid_request", "not valid"),
    ],
)
async def test_a_400_is_told_in_our_words(words, code, named):
    """The known reasons keep their meaning, the model's name does not come along."""
    with pytest.raises(InvalidCall) as caught:
        await lines_of(Scripted(json.dumps({"error": words}).encode(), status=400))
    assert (caught.value.code, named in caught.value.message) == (code, True)


@pytest.mark.parametrize("pieces", [[b"x" * 100_000], [None], [httpx.ReadError("gone")]])
async def test_a_400_whose_reason_cannot_be_read_is_still_a_400(pieces):
    """A reason that is endless, late or cut off changes nothing."""
    with pytest.raises(InvalidCall):
        await lines_of(Scripted(*pieces, status=400))


@pytest.mark.parametrize(
    ("value", "seconds"),
    [("7", 7), ("0", 1), ("99999", 300), (None, 2), ("soon", 2), ("-1", 2), ("\u0663", 2)],
)
def test_retry_after_is_taken_over_within_bounds(value, seconds):
    """Upstream's own figure where it is a sensible one."""
    error = refusal(503, b"", value)
    assert error.retry_after == seconds


@pytest.mark.parametrize(
    ("pieces", "expected"),
    [
        ([None], UpstreamTimeout),
        ([b"half", None], UpstreamTimeout),
        ([b"whole\n", None], UpstreamTimeout),
        ([httpx.ReadError("gone")], UpstreamError),
        ([b"whole\n", httpx.RemoteProtocolError("cut")], UpstreamError),
        ([b"half", OSError("cut")], UpstreamError),
    ],
)
async def test_a_reply_that_stalls_or_breaks_is_an_error_wherever_it_stands(
    autojump_clock, pieces, expected
):
    """Before the first byte, the first line, or after it: never a clean end."""
    transport = Scripted(*pieces)
    with trio.fail_after(2), pytest.raises(expected) as caught:
        await lines_of(transport)
    assert type(caught.value) is expected
    assert transport.body.closed


async def test_the_reader_can_still_work_after_a_timeout(autojump_clock):
    """A limit ends the read, not the reader: it is inside the block when it hears of it."""
    upstream = Upstream(Scripted(b"one\n", None), QUICK)
    async with upstream.open(BASE, "/api/chat", b"") as reply:
        assert await anext(reply) == [b"one"]
        await trio.sleep(1)  # the reader's own time does not count
        with pytest.raises(UpstreamTimeout):
            await anext(reply)
        await trio.sleep(1)


async def test_the_first_line_has_the_first_byte_limit_and_later_ones_the_idle_limit(
    autojump_clock,
):
    """Loading a model takes minutes; a pause between tokens does not."""

    class Slow(Pieces):
        async def __anext__(self):
            pause, piece = await super().__anext__()
            await trio.sleep(pause)
            return piece

    transport = Scripted()
    transport.body = Slow((200, b"h"), (90, b"alf\n"), (50, b"b\n"), (70, b"c\n"))
    upstream = Upstream(transport, Timeouts(first_byte=300, idle=60))
    async with upstream.open(BASE, "/api/chat", b"") as reply:
        assert await anext(reply) == [b"half"]
        assert await anext(reply) == [b"b"]
        with pytest.raises(UpstreamTimeout):
            await anext(reply)


async def test_an_error_of_the_reader_itself_passes_unchanged():
    """Only upstream's failures are renamed, and the connection is closed for any."""
    transport = Scripted(b"a\n", None)
    with pytest.raises(OSError, match="mine"):
        async with Upstream(transport, QUICK).open(BASE, "/api/chat", b""):
            raise OSError("mine")
    assert transport.body.closed


async def test_read_returns_the_whole_body_within_its_limit(autojump_clock):
    """For answers that are one object."""
    async with Upstream(Scripted(b"a\nb", b"c"), QUICK).open(BASE, "/api/embed", b"") as reply:
        assert reply.status == 200
        assert await reply.read(4) == b"a\nbc"
    transport = Scripted(b"a\nb", b"c", None)
    with pytest.raises(UpstreamError):
        async with Upstream(transport, QUICK).open(BASE, "/api/embed", b"") as reply:
            await reply.read(3)
    assert transport.body.closed


async def test_metadata_is_one_bounded_object(autojump_clock):
    """get_json and post_json return a dict, or raise as everything else here does."""
    for method in ("get_json", "post_json"):
        arguments = (BASE, "/api/show") + ((b"{}",) if method == "post_json" else ())
        transport = Scripted(b'{"models":', b"[]}")
        assert await getattr(Upstream(transport), method)(*arguments) == {"models": []}
        assert transport.requests[0].method == method.partition("_")[0].upper()
        for body in ([b"[]"], [b'{"a":'], [b""], [b"x" * 9_000_000] * 2):
            with pytest.raises(UpstreamError):
                await getattr(Upstream(Scripted(*body)), method)(*arguments)
        with pytest.raises(UpstreamTimeout):
            await getattr(Upstream(Scripted(b"{", None), QUICK), method)(*arguments)


async def test_httpx_asgi_transport_can_stand_in():
    """The seam is httpx's own, so that a simulated Ollama can be called in memory."""

    async def app(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": scope["raw_path"] + b"\nb\n"})

    transport = httpx.ASGITransport(app)
    assert await lines_of(transport) == [[b"/api/chat", b"b"]]


@asynccontextmanager
async def listening(handler):
    """Serve one handler on loopback, under a time limit."""
    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            serve = partial(trio.serve_tcp, handler, 0, host="127.0.0.1")
            listeners = await nursery.start(serve)
            yield f"http://127.0.0.1:{listeners[0].socket.getsockname()[1]}"
            nursery.cancel_scope.cancel()


CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"


@pytest.mark.parametrize(
    ("phase", "way"),
    [
        ("before the head", "cancel"),
        ("mid-stream", "cancel"),
        ("mid-stream", "cancelled in a group"),
        ("mid-stream", "leave"),
    ],
)
async def test_leaving_closes_the_socket_within_milliseconds(phase, way):
    """However the block is left and in whatever phase, Ollama sees the end at once."""
    ready, gone = trio.Event(), trio.Event()

    async def ollama(stream):
        await stream.receive_some()
        if phase == "mid-stream":
            await stream.send_all(CHUNKED + b"2\r\na\n\r\n")
        ready.set()
        assert await stream.receive_some() == b""
        gone.set()

    async def call(url):
        async with Upstream(LeanTransport()).open(url, "/api/chat", b"{}") as reply:
            async for _ in reply:
                if way == "leave":
                    break
                if way == "cancelled in a group":
                    async with trio.open_nursery() as inner:
                        inner.start_soon(trio.sleep_forever)
                        await trio.sleep_forever()

    async with listening(ollama) as url, trio.open_nursery() as nursery:
        nursery.start_soon(call, url)
        await ready.wait()
        await trio.testing.wait_all_tasks_blocked(0.01)
        began = trio.current_time()
        nursery.cancel_scope.cancel()
        with trio.CancelScope(shield=True):
            await gone.wait()
        assert trio.current_time() - began < 1


async def test_a_reply_read_to_its_end_leaves_the_connection_for_the_next():
    """Ten calls one after the other use one connection."""
    connections = 0

    async def ollama(stream):
        nonlocal connections
        connections += 1
        while await stream.receive_some():
            await stream.send_all(CHUNKED + b"2\r\na\n\r\n0\r\n\r\n")

    async with listening(ollama) as url, LeanTransport() as transport:
        upstream = Upstream(transport)
        for _ in range(10):
            async with upstream.open(url, "/api/chat", b"{}") as reply:
                assert [lines async for lines in reply] == [[b"a"]]
    assert connections == 1


async def test_a_dying_upstream_never_looks_like_a_clean_end():
    """The lines before the cut are delivered, then the error comes."""

    async def ollama(stream):
        await stream.receive_some()
        await stream.send_all(CHUNKED + b"2\r\na\n\r\n")
        await stream.aclose()

    upstream = Upstream(LeanTransport())
    async with listening(ollama) as url, upstream.open(url, "/api/chat", b"{}") as reply:
        assert await anext(reply) == [b"a"]
        with pytest.raises(UpstreamError):
            await anext(reply)


async def test_reachability_is_reported_for_each_call():
    """A refused connection is bad news for a backend; an answer of any status is good news."""
    heard = []
    url = f"http://127.0.0.1:{free_port()}"

    def report(backend, /, *, ok):
        heard.append((backend, ok))

    with trio.fail_after(20):
        with pytest.raises(UpstreamUnavailable) as caught:
            await Upstream(LeanTransport(), report=report).get_json(url, "/api/tags")
        assert caught.value.retry_after
        unreachable = Upstream(LeanTransport(), Timeouts(connect=0), report=report)
        with pytest.raises(UpstreamTimeout):
            await unreachable.get_json(url, "/api/tags")
        with pytest.raises(UpstreamError):
            await Upstream(Scripted(status=500), report=report).get_json(BASE, "/api/tags")
    assert heard == [(url, False), (url, False), (BASE, True)]


async def test_a_flood_is_read_no_faster_than_the_lines_are_taken():
    """The reply never reads ahead: one read for each batch."""
    taken = 0

    class Flood(Pieces):
        async def __anext__(self):
            nonlocal taken
            taken += 1
            return b"line\n" * 1000

    transport = Scripted()
    transport.body = Flood()
    async with Upstream(transport).open(BASE, "/api/chat", b"") as reply:
        assert taken == 1
        for _ in range(3):
            await anext(reply)
        assert taken == 3
