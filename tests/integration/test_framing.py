"""Framing: what could be read as two different requests is refused."""

from __future__ import annotations

import contextlib

import orjson

from tests import raw_http

BODY = b'{"model":"llama3.2","messages":[{"role":"user","content":"one two"}],"stream":false}'
CHAT = "POST /api/chat"


async def serves(world):
    """Whether a plain call still works."""
    answer = await world.post("/api/chat", orjson.loads(BODY))
    return answer.status_code == 200


FRAMINGS = (
    [("Content-Length", str(len(BODY))), ("Transfer-Encoding", "chunked")],
    [("Transfer-Encoding", "chunked"), ("Content-Length", "5")],
    [("Content-Length", "5"), ("Content-Length", "6")],
    [("Content-Length", "5, 6")],
    [("Content-Length", "-1")],
    [("Content-Length", "+1")],
    [("Content-Length", "1_0")],
    [("Content-Length", "0x10")],
    [("Content-Length", "")],
    [("Content-Length", "9" * 30)],
    [("Transfer-Encoding", "gzip, chunked")],
    [("Transfer-Encoding", "identity")],
    [("Transfer-Encoding", "chunked, chunked")],
    [("Transfer-Encoding", "chunked"), ("Transfer-Encoding", "chunked")],
    [("Transfer-Encoding", "xchunked")],
    [("Transfer-Encoding ", "chunked")],
    [("X-Bad Name", "x")],
    [("X-Nul", "a\x00b")],
    [("Host", "second")],
)


async def test_ambiguous_framing_is_refused_and_the_connection_closed(world):
    """What two readers could read differently is an error; what follows is never read as a call."""
    for headers in FRAMINGS:
        smuggled = raw_http.request("POST /api/pull", world.auth(), b"{}")
        pairs = [*world.auth().items(), *headers]
        async with raw_http.connect(world.port) as client:
            await client.send(raw_http.request(CHAT, pairs) + b"0\r\n\r\n" + smuggled)
            said = await client.closed()
        # With bytes behind it, hypercorn may close before the answer has gone out.
        assert said.count(b"HTTP/1.1 ") == said.count(b"HTTP/1.1 400") + said.count(b"HTTP/1.1 501")
        assert said.count(b"HTTP/1.1 ") <= 1
        assert world.sim.started == 0
        assert not world.sim.management
    assert await serves(world)


UNREADABLE = (
    (b"\x16\x03\x01\x02\x00\x01\r\n\r\n", 400),  # TLS
    (b"GET /healthz HTTP/1.1\r\n\r\n", 400),  # no host
    (b"GET /healthz HTTP/1.1\r\nhost: a\r\nbad name: x\r\n\r\n", 400),
    (b"GET /healthz HTTP/1.1\r\nhost: a\r\nx: " + b"x" * 200_000, 431),
    (b"POST /v1/chat/completions HTTP/1.1\r\nhost: a\r\ntransfer-encoding: gzip\r\n\r\n", 501),
)


async def test_what_is_not_http_is_told_so_in_the_usual_shape(world):
    """A body that says what was wrong, a request id, and the end of the connection."""
    for raw, status in UNREADABLE:
        async with raw_http.connect(world.port) as client:
            await client.send(raw)
            answer = await client.answer()
            assert await client.closed() == b""
        assert answer.status == status
        assert answer.json()["error"]  # as Ollama words it, where no path could be read
        assert (answer.header("x-request-id") or "").startswith("req_")


async def test_a_body_that_is_not_http_is_told_so_in_the_words_of_its_route(world):
    """By then the path is known: Ollama's clients read another shape than OpenAI's."""
    headers = world.auth() | {"Transfer-Encoding": "chunked"}
    async with raw_http.connect(world.port) as client:
        await client.send(raw_http.request(CHAT, headers) + b"zz\r\n")
        answer = await client.answer()
    assert answer.status == 400
    assert "not valid HTTP" in orjson.loads(answer.body)["error"]


async def test_content_length_that_only_repeats_itself_is_one_length(world):
    """Equal lengths are the same number to every reader, and the body is that long."""
    pairs = [*world.auth().items(), ("Content-Length", str(len(BODY)))]
    answer = await raw_http.ask(world.port, CHAT, pairs, BODY)
    assert answer.status in {200, 400}


BAD_CHUNKS = (
    b"zz\r\n{}\r\n0\r\n\r\n",
    b"-2\r\n{}\r\n0\r\n\r\n",
    b"2\r\n{}xx0\r\n\r\n",
    b"2;" + b"x" * 100_000 + b"\r\n{}\r\n0\r\n\r\n",
    b"fffffffffffffffffffff\r\n{}",
)


async def test_malformed_chunks_never_reach_upstream(world):
    """A body that cannot be read is a 400 or a closed connection."""
    for chunks in BAD_CHUNKS:
        headers = world.auth() | {"Transfer-Encoding": "chunked"}
        async with raw_http.connect(world.port) as client:
            await client.send(raw_http.request(CHAT, headers) + chunks)
            with contextlib.suppress(EOFError):
                answer = await client.answer()
                assert answer.status in {400, 431}
        assert world.sim.started == 0
    assert await serves(world)


async def test_a_chunked_body_with_extensions_and_trailers_is_read(world):
    """Trailers are read and forgotten: they are no headers."""
    headers = world.auth() | {"Transfer-Encoding": "chunked", "Trailer": "x-api-key"}
    size = f"{len(BODY):x};a=b\r\n".encode()
    end = b"\r\n0\r\nx-api-key: other\r\n\r\n"
    async with raw_http.connect(world.port) as client:
        await client.send(raw_http.request(CHAT, headers) + size + BODY + end)
        assert (await client.answer()).status == 200


async def test_folded_headers_are_unfolded_or_refused(world):
    """An obsolete fold cannot hide a second value."""
    raw = raw_http.request(CHAT, [], BODY).replace(
        b"Host: gateway", b"Host: gateway\r\nAuthorization: Bearer\r\n " + world.key["key"].encode()
    )
    async with raw_http.connect(world.port) as client:
        await client.send(raw)
        assert (await client.answer()).status in {200, 400}
    assert await serves(world)


BOMBS = (
    {"Authorization": "Bearer " + "x" * 1_000_000},
    {"Cookie": "x" * 200_000},
    {f"X-{number}": "x" * 100 for number in range(5000)},
    {"x" * 100_000: "x"},
)


async def test_a_bomb_of_headers_is_refused_early(world):
    """431, or the connection ends before it was all read."""
    for headers in BOMBS:
        async with raw_http.connect(world.port) as client:
            await client.send(raw_http.request("GET /api/tags", headers))
            with contextlib.suppress(EOFError):
                assert (await client.answer()).status in {400, 431}
        assert await serves(world)


async def test_http_1_0_is_answered_and_closed(world):
    """An old client without Host gets its answer, its end being the connection's."""
    async with raw_http.connect(world.port) as client:
        head = f"GET /api/tags HTTP/1.0\r\nx-api-key: {world.key['key']}\r\n\r\n"
        await client.send(head.encode())
        assert (await client.answer()).status == 200
        await client.closed()


HOSTS = (
    "evil.com",
    "evil.com:1",
    "",
    "a b",
    "a/b@c",
    "[::1",
    "\xff",
)


async def test_the_host_header_decides_nothing(world):
    """Whatever it says, the same routes answer alike, or the request is 400."""
    for host in HOSTS:
        async with raw_http.connect(world.port) as client:
            key = f"x-api-key: {world.key['key']}\r\n\r\n"
            head = f"GET /api/version HTTP/1.1\r\nHost: {host}\r\n"
            await client.send((head + key).encode("latin-1"))
            answer = await client.answer()
            assert answer.status in {200, 400}
            assert answer.header("location") is None
