"""The shipped nginx configuration in front of a gateway: real nginx, that very file."""

from __future__ import annotations

import re
import shutil
import socket
import subprocess
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import orjson
import pytest
import trio

from tests import raw_http
from tests.world import World, open_world
from trio_gateway.simulator.script import Script

NGINX = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin:/usr/local/sbin")
SHIPPED = Path(__file__).parents[2] / "deploy" / "nginx.conf"
pytestmark = pytest.mark.skipif(
    NGINX is None, reason="nginx is not on PATH: deploy/nginx.conf is NOT tested"
)

# What a distribution's nginx.conf puts around a file in conf.d.
AROUND = """
daemon off;
master_process off;
pid {folder}/pid;
error_log {folder}/error.log warn;
events {{ worker_connections 256; }}
http {{
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    include {folder}/site.conf;
}}
"""
STREAM = b'{"model":"llama3.2","messages":[{"role":"user","content":"one two"}]}'
WHOLE = STREAM[:-1] + b',"stream":false}'


@dataclass
class Fronted:
    """A gateway and the port of the nginx in front of it."""

    world: World
    port: int
    folder: Path


def free_port():
    """Find a port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def configure(folder, port, servers):
    """Write the shipped file with nothing changed but its ports and where it logs."""
    text = SHIPPED.read_text(encoding="utf-8")
    lines = "\n".join(f"    server {server} max_fails=0;" for server in servers)
    for pattern, replacement in (
        (r"    server 127\.0\.0\.1:8080 max_fails=0;", lines),
        (r"    listen 80;", f"    listen 127.0.0.1:{port};"),
        (r"/var/log/nginx/trio-gateway\.log", f"{folder}/access.log"),
    ):
        text, found = re.subn(pattern, replacement, text)
        assert found == 1, pattern
    (folder / "site.conf").write_text(text, encoding="utf-8")
    (folder / "nginx.conf").write_text(AROUND.format(folder=folder), encoding="utf-8")


@asynccontextmanager
async def nginx(folder, *servers):
    """Run nginx in front of these servers; yields its port."""
    port = free_port()
    configure(folder, port, servers)
    command = [NGINX, "-p", str(folder), "-e", f"{folder}/error.log", "-c", f"{folder}/nginx.conf"]
    async with trio.open_nursery() as nursery:
        process = await nursery.start(
            partial(trio.run_process, command, check=False, stderr=subprocess.DEVNULL)
        )
        try:
            await answers(port, process)
            yield port
        finally:
            process.terminate()


async def answers(port, process):
    """Wait until it takes connections."""
    with trio.fail_after(5):
        while True:
            assert process.poll() is None, "nginx did not start"
            try:
                async with await trio.open_tcp_stream("127.0.0.1", port):
                    return
            except OSError:
                await trio.lowlevel.checkpoint()


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
    front.world.sim.play(Script(tokens=1000, token_gap=0.02))
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
    sim.play(Script(head_delay=30) if phase == "head" else Script(tokens=5000, token_gap=0.01))
    async with raw_http.connect(front.port) as client:
        await client.send(chat(front.world))
        with trio.fail_after(5):
            await sim.until(
                lambda sim: sim.open == 1 and (phase == "head" or sim.generations[0].tokens > 3)
            )
        client.leave(reset=reset)
        with trio.fail_after(0.5):
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
    with trio.fail_after(1):
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
    with trio.fail_after(2):
        while not log.read_text(encoding="utf-8"):
            await trio.lowlevel.checkpoint()
    text = log.read_text(encoding="utf-8")
    assert "canary" not in text
    assert answer.header("x-request-id") in text


@pytest.mark.parametrize("method", ["POST", "GET"])
async def test_a_failed_request_is_not_tried_again(tmp_path, method):
    """Two dying servers, one request: one of them hears of it, once, and the client gets 502."""
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
    assert len(heard) == 1
    assert heard[0].startswith(method.encode())
