"""The shipped nginx configuration in front of a gateway: real nginx, that very file."""

from __future__ import annotations

import itertools
import re
import ssl
import subprocess
from collections import Counter
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson
import pytest
import trio

from deploy.staging import nginx as shipped
from deploy.staging.programs import free_port
from tests import raw_http
from tests.deploy.certificates import write_certificate
from tests.world import World, open_world
from trio_gateway.simulator.script import Script

pytestmark = pytest.mark.skipif(
    shipped.find() is None, reason="nginx is not on PATH: deploy/nginx.conf is NOT tested"
)

STREAM = b'{"model":"llama3.2","messages":[{"role":"user","content":"one two"}]}'
WHOLE = STREAM[:-1] + b',"stream":false}'
SOON = 5.0  # seconds, where a call would otherwise last for ten minutes
LONGEST = 120.0  # seconds for a flood


@dataclass
class Fronted:
    """A gateway and the port of the nginx in front of it."""

    world: World
    port: int
    folder: Path


@asynccontextmanager
async def nginx(folder, *servers, tls=None):
    """Run nginx in front of these servers; yields its port. `tls` is a certificate's folder."""
    running = shipped.Nginx(folder, free_port())
    site = shipped.adapted(folder, running.port, servers)
    if tls is not None:
        site = shipped.with_tls(site, tls / "fullchain.pem", tls / "privkey.pem")
    running.write(site)
    try:
        await running.start()
        yield running.port
    finally:
        await running.stop()


@pytest.fixture
async def front(database, redis_url, tmp_path):
    async with (
        open_world(database, redis_url, trusted_proxies="127.0.0.1") as world,
        nginx(tmp_path, f"127.0.0.1:{world.port}") as port,
    ):
        yield Fronted(world, port, tmp_path)


def chat(world, body=STREAM, **headers):
    """Write a call."""
    return raw_http.request("POST /api/chat", world.auth() | headers, body)


async def test_tokens_arrive_one_by_one(front):
    """A line is with the client while the next ones are still to be made."""
    front.world.sim.play(Script(tokens=1000, token_gap=0.2))
    async with raw_http.connect(front.port) as client:
        await client.send(chat(front.world))
        await client.until(b"t2")
        assert front.world.sim.generations[0].tokens < 20
        client.leave()
    assert (await front.world.ledger())[0]["outcome"] == "aborted"


@pytest.mark.parametrize("phase", ["head", "tokens"])
@pytest.mark.parametrize("reset", [False, True])
async def test_a_hangup_through_nginx_stops_the_gpu(front, phase, reset):
    """Before the first token and after it, by FIN and by RST."""
    sim = front.world.sim
    sim.play(Script(head_delay=600) if phase == "head" else Script(tokens=60_000, token_gap=0.01))
    async with raw_http.connect(front.port) as client:
        await client.send(chat(front.world))
        with trio.fail_after(raw_http.LIMIT):
            await sim.until(
                lambda sim: sim.open == 1 and (phase == "head" or sim.generations[0].tokens > 3)
            )
        client.leave(reset=reset)
        with trio.fail_after(SOON):
            await sim.until(lambda sim: sim.open == 0)
    (row,) = await front.world.ledger()
    assert row["outcome"] == "aborted"


async def test_the_audit_log_knows_the_real_client(front):
    """The address that nginx saw, not the one that the client claims."""
    async with raw_http.connect(front.port, "127.0.0.7") as client:
        spoofed = {"X-Forwarded-For": "203.0.113.9, 127.0.0.1", "X-Real-IP": "203.0.113.9"}
        await client.send(raw_http.request("GET /api/pull", spoofed))
        assert (await client.answer()).status == 403
    rows: list[dict[str, Any]] = []
    with trio.fail_after(raw_http.LIMIT):
        while not rows:
            rows = await front.world.rows("SELECT client, path FROM gateway.audit_log")
    assert rows == [{"client": "127.0.0.7", "path": "/api/pull"}]


async def test_raw_paths_pass_nginx_unchanged(front):
    """What nginx would normalize is still refused by its raw bytes."""
    wrong = {}
    for path in ("//api//tags", "/v1/../api/tags", "/api/%74ags", "/api%2ftags", "/API/tags"):
        answer = await raw_http.ask(front.port, f"POST {path}", front.world.auth(), WHOLE)
        if answer.status != 403 or answer.header("x-request-id") is None:
            wrong[path] = answer
    assert wrong == {}
    assert front.world.sim.started == 0
    assert front.world.sim.management == []


async def test_answers_are_the_gateways_own(front):
    """Statuses, bodies and headers pass unchanged, refusals too; connections are kept."""
    async with raw_http.connect(front.port) as client:
        await client.send(chat(front.world, WHOLE))
        good = await client.answer()
        assert good.status == 200
        assert good.json()["message"]["content"] == "Echo: one two"
        await client.send(raw_http.request("GET /v1/models", {"Authorization": "Bearer x"}))
        refused = await client.answer()
    assert refused.status == 401
    assert refused.json()["error"]["code"] == "invalid_api_key"
    assert refused.header("www-authenticate") == "Bearer"
    assert refused.header("x-request-id") != good.header("x-request-id")
    websocket = {"Upgrade": "websocket", "Connection": "Upgrade", "Sec-WebSocket-Version": "13"}
    upgraded = await raw_http.ask(front.port, "GET /api/tags", front.world.auth() | websocket)
    assert upgraded.status == 200
    assert upgraded.header("upgrade") is None


async def test_an_unproven_caller_is_refused_before_its_body_has_come(front):
    """Bodies are passed on as they come, and are never kept in files."""
    async with raw_http.connect(front.port) as client:
        head = raw_http.request("POST /api/chat", {"Content-Length": "1000000"})
        await client.send(head + b"{" * 1000)
        assert (await client.answer()).status == 401
    large = orjson.dumps({"model": "llama3.2", "prompt": "x" * 3_000_000, "stream": False})
    answer = await raw_http.ask(front.port, "POST /api/generate", front.world.auth(), large)
    assert answer.status in {200, 400, 429}
    assert not list((front.folder / "body").rglob("*.*"))
    assert not [path for path in (front.folder / "body").rglob("*") if path.is_file()]


async def test_the_access_log_keeps_no_query(front):
    """A key in a query string is not in nginx's log either."""
    answer = await raw_http.ask(front.port, "GET /api/version?api_key=QUERY-canary")
    assert answer.status == 401
    log = front.folder / "access.log"
    with trio.fail_after(raw_http.LIMIT):
        while not log.read_text(encoding="utf-8"):
            await trio.lowlevel.checkpoint()
    text = log.read_text(encoding="utf-8")
    assert "canary" not in text
    assert answer.header("x-request-id") in text


@pytest.mark.parametrize(("method", "times"), [("POST", 1), ("GET", 2)])
async def test_a_failed_call_is_not_tried_again(tmp_path, method, times):
    """Two dying servers: one hears of a POST, once. A GET costs nothing and may be both's."""
    heard = []

    async def die(stream):
        async with stream:
            heard.append(await stream.receive_some(65536))

    async with trio.open_nursery() as nursery:
        listeners = [(await trio.open_tcp_listeners(0, host="127.0.0.1"))[0] for _ in range(2)]
        nursery.start_soon(trio.serve_listeners, die, listeners)
        servers = [f"127.0.0.1:{item.socket.getsockname()[1]}" for item in listeners]
        async with nginx(tmp_path, *servers) as port:
            body = WHOLE if method == "POST" else None
            answer = await raw_http.ask(port, f"{method} /api/chat", {}, body)
            assert answer.status == 502
        nursery.cancel_scope.cancel()
    assert len(heard) == times
    assert all(request.startswith(method.encode()) for request in heard)


async def test_a_server_that_takes_no_connection_is_passed_over(front, tmp_path):
    """A gateway that is being restarted: every call goes to the other one, each once."""
    (folder := tmp_path / "two").mkdir()
    servers = (f"127.0.0.1:{free_port()}", f"127.0.0.1:{front.world.port}")
    async with nginx(folder, *servers) as port:
        for _ in range(6):
            answer = await raw_http.ask(port, "POST /api/chat", front.world.auth(), WHOLE)
            assert answer.status == 200
    assert len(await front.world.ledger()) == 6


async def test_nginx_speaks_the_callers_dialect_when_no_gateway_answers(tmp_path):
    """Nobody listens: 502 with Retry-After, in OpenAI's shape and in Ollama's."""
    async with nginx(tmp_path, f"127.0.0.1:{free_port()}") as port:
        openai = await raw_http.ask(port, "POST /v1/chat/completions", {}, WHOLE)
        native = await raw_http.ask(port, "POST /api/chat", {}, WHOLE)
    assert (openai.status, native.status) == (502, 502)
    assert openai.json()["error"]["code"] == "upstream_unavailable"
    assert isinstance(native.json()["error"], str)
    assert openai.header("retry-after") == native.header("retry-after") == "1"
    assert openai.header("content-type") == "application/json"


async def test_a_flood_from_one_address_ends_at_nginx(front):
    """Far more requests at once than the burst: some are 429, and another address is served."""
    seen: Counter[int] = Counter()
    answers = []

    async def ask(address):
        async with raw_http.connect(front.port, address) as client:
            for count in itertools.count(1):
                await client.send(raw_http.request("GET /healthz"))
                answer = await client.answer()
                seen[answer.status] += 1
                if answer.status == 429:
                    answers.append(answer)
                if answers and count >= 40:  # one that is slow enough never comes to the burst
                    return

    with trio.fail_after(LONGEST):
        async with trio.open_nursery() as nursery:
            for _ in range(20):
                nursery.start_soon(ask, "127.0.0.8")
    assert seen.keys() == {200, 429}
    assert seen[200] >= 400
    assert answers[0].json()["error"]["code"] == "rate_limit_exceeded"
    assert answers[0].header("retry-after") == "1"
    async with raw_http.connect(front.port, "127.0.0.9") as client:
        await client.send(raw_http.request("GET /healthz"))
        assert (await client.answer()).status == 200


async def test_the_tls_lines_load_and_stream(front, tmp_path):
    """Switched on as the head of the file says: HTTPS is answered token by token, HTTP is not."""
    (folder := tmp_path / "tls").mkdir()
    write_certificate(folder)
    front.world.sim.play(Script(tokens=1000, token_gap=0.2))
    trusted = ssl.create_default_context(cafile=folder / "fullchain.pem")
    async with nginx(folder, f"127.0.0.1:{front.world.port}", tls=folder) as port:
        async with await trio.open_ssl_over_tcp_stream(
            "127.0.0.1", port, ssl_context=trusted, https_compatible=True
        ) as client:
            await client.send_all(chat(front.world))
            received = b""
            with trio.fail_after(raw_http.LIMIT):
                while b"t2" not in received:
                    received += await client.receive_some(65536)
            assert received.startswith(b"HTTP/1.1 200 ")
            assert front.world.sim.generations[0].tokens < 20
        plain = await raw_http.ask(port, "GET /healthz")
        assert plain.status == 400
    words = front.folder / "tls" / "site.conf"
    assert re.findall(r"^ *listen (.*);", words.read_text("utf-8"), re.MULTILINE) == [
        f"127.0.0.1:{port} ssl http2"
    ]


def test_the_way_to_switch_tls_on_is_that_of_the_head(tmp_path):
    """The `sed` that the file itself names does what the tests do."""
    text = shipped.SHIPPED.read_text(encoding="utf-8")
    (line,) = re.findall(
        r"^#   sed -i (.*) /etc/nginx/conf.d/trio-gateway.conf$", text, re.MULTILINE
    )
    (copy := tmp_path / "site.conf").write_text(text, encoding="utf-8")
    subprocess.run(f"sed -i {line} {copy}", shell=True, check=True, timeout=10)
    certificate = "/etc/ssl/gateway.example.com"
    expected = shipped.with_tls(
        text, Path(f"{certificate}/fullchain.pem"), Path(f"{certificate}/privkey.pem")
    )
    assert copy.read_text(encoding="utf-8").replace("     ", " ") == expected.replace("     ", " ")
