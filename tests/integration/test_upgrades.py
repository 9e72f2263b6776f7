"""WebSocket and HTTP/2: other protocols on the same port are no way around anything."""

from __future__ import annotations

import contextlib
from typing import Any

import h2.config
import h2.connection
import h2.events
import orjson
import pytest
import trio

from tests import raw_http
from trio_gateway.simulator.script import Script

WEBSOCKET = {
    "Upgrade": "websocket",
    "Connection": "Upgrade",
    "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
    "Sec-WebSocket-Version": "13",
}
SOON = 5.0  # seconds, where a call would otherwise last for twenty minutes
H2C = {
    "Upgrade": "h2c",
    "Connection": "Upgrade, HTTP2-Settings",
    "HTTP2-Settings": "AAMAAABkAAQAAP__",
}


class Http2:
    """An HTTP/2 client with prior knowledge; several requests may share it."""

    def __init__(self, stream):
        """Take the connected stream."""
        self.stream = stream
        # Nothing is validated on the way out: the tests say what no client should.
        self.connection = h2.connection.H2Connection(
            h2.config.H2Configuration(
                validate_outbound_headers=False, normalize_outbound_headers=False
            )
        )

    async def open(self):
        """Send the preface."""
        self.connection.initiate_connection()
        await self.flush()

    async def flush(self):
        """Write what is waiting."""
        data = self.connection.data_to_send()
        if data:
            with contextlib.suppress(trio.BrokenResourceError):
                await self.stream.send_all(data)

    async def begin(self, method, path, headers=(), body=None):
        """Send a request and return its stream id."""
        stream_id = self.connection.get_next_available_stream_id()
        pseudo = [(":method", method), (":scheme", "http"), (":authority", "gateway")]
        if path is not None:
            pseudo.append((":path", path))
        self.connection.send_headers(stream_id, [*pseudo, *headers], end_stream=body is None)
        if body is not None:
            self.connection.send_data(stream_id, body, end_stream=True)
        await self.flush()
        return stream_id

    async def answer(self, stream_id):
        """Read one answer: status, headers and body."""
        status, headers, body = None, {}, b""
        with trio.fail_after(raw_http.LIMIT):
            while True:
                data = await self.stream.receive_some(65536)
                if not data:
                    raise EOFError("the server closed the connection")
                for event in self.connection.receive_data(data):
                    if getattr(event, "stream_id", None) != stream_id:
                        continue
                    if isinstance(event, h2.events.ResponseReceived):
                        headers = {n.decode(): v.decode() for n, v in event.headers}
                        status = int(headers.pop(":status"))
                    elif isinstance(event, h2.events.DataReceived):
                        body += event.data
                    elif isinstance(event, h2.events.StreamReset):
                        raise ConnectionResetError("the server reset the stream")
                    elif isinstance(event, h2.events.StreamEnded):
                        return status, headers, body

    async def ask(self, method, path, headers=(), body=None):
        """Send a request and read its answer."""
        return await self.answer(await self.begin(method, path, headers, body))


@contextlib.asynccontextmanager
async def http2(port):
    """Open an HTTP/2 connection."""
    stream = await trio.open_tcp_stream("127.0.0.1", port)
    async with stream:
        client = Http2(stream)
        await client.open()
        yield client


@pytest.mark.parametrize("path", ["/api/chat", "/api/pull", "/v1/realtime", "/", "/api/tags"])
async def test_no_path_takes_a_websocket(world, path):
    """The upgrade is refused as any unknown endpoint is, with an id, and audited."""
    answer = await raw_http.ask(world.port, f"GET {path}", world.auth() | WEBSOCKET)
    assert answer.status == 403
    assert answer.header("x-request-id")
    error = answer.json()["error"]
    assert error["code"] == "endpoint_not_allowed" if path.startswith("/v1") else error
    rows: list[dict[str, Any]] = []
    with trio.fail_after(raw_http.LIMIT):
        while not rows:
            rows = await world.rows("SELECT code, path, count FROM gateway.audit_log")
    assert rows == [{"code": "endpoint_not_allowed", "path": path, "count": 1}]
    assert not world.sim.management


async def test_http2_with_prior_knowledge_passes_the_same_screen(world):
    """Routes, methods, credentials and framing are refused over HTTP/2 as over HTTP/1.1."""
    key = world.key["key"]
    auth = [("authorization", f"Bearer {key}")]
    async with http2(world.port) as client:
        for method, path, headers, status in (
            ("POST", "/api/pull", auth, 403),
            ("GET", "//api/tags", auth, 403),
            ("GET", "/api/tags/../pull", auth, 403),
            ("GET", "/api/chat", auth, 405),
            ("GET", "/api/tags", [], 401),
            ("GET", "/api/tags", auth + auth, 400),
            ("GET", "/api/tags", [*auth, ("x-api-key", "other")], 401),
            ("GET", "/api/tags", auth, 200),
        ):
            got, answer, _ = await client.ask(method, path, headers)
            assert got == status, (method, path)
            assert answer["x-request-id"]
    assert world.sim.management == []
    assert world.sim.started == 0


async def test_a_call_over_http2_is_held_and_settled(world):
    """It streams, it is charged, and it has its row."""
    auth = [("authorization", f"Bearer {world.key['key']}")]
    body = b'{"model":"llama3.2","messages":[{"role":"user","content":"one two"}]}'
    async with http2(world.port) as client:
        status, headers, text = await client.ask("POST", "/api/chat", auth, body)
    assert status == 200
    assert orjson.loads(text.splitlines()[-1])["done"] is True
    (row,) = await world.ledger()
    assert (row["request_id"], row["outcome"]) == (headers["x-request-id"], "completed")


@pytest.mark.parametrize("way", ["reset", "close"])
async def test_leaving_over_http2_stops_the_gpu(world, way):
    """A stream reset and a closed connection both end the call upstream."""
    world.sim.play(Script(tokens=60_000, token_gap=0.02))
    auth = [("authorization", f"Bearer {world.key['key']}")]
    body = b'{"model":"llama3.2","messages":[{"role":"user","content":"one two"}]}'
    async with http2(world.port) as client:
        stream_id = await client.begin("POST", "/api/chat", auth, body)
        with trio.fail_after(raw_http.LIMIT):
            await world.sim.until(lambda sim: sim.generations and sim.generations[0].tokens > 2)
        if way == "reset":
            client.connection.reset_stream(stream_id)
            await client.flush()
        else:
            client.stream.socket.close()
        with trio.fail_after(SOON):
            await world.sim.until(lambda sim: sim.open == 0)
    (row,) = await world.ledger()
    assert row["outcome"] == "aborted"


MALFORMED: Any = (
    ("GET", "/api/t\xe4gs", []),
    ("GET", "", []),
    ("GET", None, []),
    ("CONNECT", "/api/chat", []),
    ("CONNECT", "/api/chat", [(":protocol", "websocket")]),
    ("GET", "/api/tags", [("connection", "close")]),
    ("GET", "/api/tags", [("Upper", "x")]),
    ("GET", "/api/tags", [("transfer-encoding", "chunked")]),
    ("P\xd6ST", "/api/tags", []),
    ("GET", "/api/tags", [("authorization", "Bearer \xff\x00")]),
)


async def test_malformed_http2_harms_only_its_own_connection(world):
    """Whatever the answer is, it is no success, and the worker goes on serving."""
    for method, path, headers in MALFORMED:
        async with http2(world.port) as client:
            status = None
            with contextlib.suppress(EOFError, ConnectionResetError, trio.BrokenResourceError):
                status, _, _ = await client.ask(method, path, headers)
            assert status is None or 400 <= status < 500
        assert (await world.get("/api/tags")).status_code == 200
        assert world.sim.started == 0


NOT_ASCII = (
    WEBSOCKET | {"Sec-WebSocket-Extensions": "\xff"},
    WEBSOCKET | {"Sec-WebSocket-Protocol": "\xff"},
    WEBSOCKET | {"Sec-WebSocket-Key": "\xff"},
    WEBSOCKET | {"Sec-WebSocket-Version": "\xff"},
    H2C | {"HTTP2-Settings": "\xff"},
    H2C | {"HTTP2-Settings": "A"},
    H2C | {"HTTP2-Settings": "!!!!"},
    {"Connection": "\xff", "Upgrade": "\xfe"},
    {"Expect": "\xff"},
    {"Origin": "\xff", "X-Forwarded-For": "\xff", "Content-Type": "\xff"},
)


async def test_header_values_that_are_no_ascii_harm_only_their_own_connection(world):
    """The connection may end without an answer; the worker and its other calls go on."""
    for headers in NOT_ASCII:
        world.sim.play(Script(tokens=20, held=True))
        body = {"model": "llama3.2", "prompt": "x"}
        async with world.client.stream(
            "POST", "/api/generate", json=body, headers=world.auth()
        ) as other:
            lines = other.aiter_lines()
            await anext(lines)
            async with raw_http.connect(world.port) as client:
                await client.send(raw_http.request("GET /api/chat", headers))
                with contextlib.suppress(EOFError):
                    await client.answer()
            world.sim.play()
            async for line in lines:
                last = line
        assert orjson.loads(last)["done"] is True


@pytest.mark.parametrize("path", ["/api/pull", "/api/tags"])
async def test_an_h2c_upgrade_is_no_bypass(world, path):
    """Upgraded or not, the request is screened and wants its key."""
    async with raw_http.connect(world.port) as client:
        await client.send(raw_http.request(f"GET {path}", H2C))
        first = await client.answer()
    assert first.status in {101, 401, 403}
    assert (await world.get("/api/tags")).status_code == 200
    assert world.sim.management == []
