"""What crosses the gateway: no header in either direction, no secret of upstream, no trace."""

from __future__ import annotations

import itertools
from typing import Any

import httpx
import orjson
import pytest
import trio

from tests import raw_http
from tests.integration.matrix import MODEL, TABLE, body_of, cases
from tests.world import open_world
from trio_gateway.simulator.canaries import SECRETS
from trio_gateway.simulator.script import Script
from trio_gateway.web.routes import INFERENCE

STRAY = {
    "Cookie": "session=stray-cookie",
    "Forwarded": "for=stray-forwarded",
    "X-Forwarded-For": "203.0.113.9",
    "X-Forwarded-Host": "stray-host",
    "X-Forwarded-Proto": "stray",
    "X-Real-IP": "203.0.113.9",
    "Via": "stray-via",
    "X-Tenant": "stray-tenant",
    "X-Backend": "http://stray.example",
    "X-Request-Id": "stray-id",
    "Accept-Encoding": "gzip, zstd",
    "Accept-Language": "stray-language",
    "User-Agent": "stray-agent",
    "Referer": "http://stray.example/",
    "Origin": "http://stray.example",
    "Traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
    "Authorization-Extra": "stray",
    "Connection": "keep-alive, X-Hop",
    "X-Hop": "stray-hop",
    "TE": "trailers",
    "Upgrade": "stray",
    "Range": "bytes=0-1",
    "If-None-Match": "*",
}
SENT = {
    "host",
    "content-type",
    "accept",
    "accept-encoding",
    "user-agent",
    "content-length",
}


async def test_no_header_of_a_request_reaches_upstream(world):
    """On every inference route upstream sees the gateway's own few headers and nothing else."""
    for path in sorted(INFERENCE):
        headers = world.auth() | STRAY
        body = orjson.dumps(body_of(path, MODEL))
        answer = await raw_http.ask(world.port, f"POST {path}?stray=query", headers, body)
        assert answer.status == 200
        generation = world.sim.generations[-1]
        sent = dict(generation.headers)
        assert len(sent) == len(generation.headers)
        assert sent.keys() == SENT, path
        assert sent["user-agent"] == "trio-gateway"
        assert sent["accept-encoding"] == "identity"
        assert sent["content-type"] == "application/json"
        assert sent["host"].startswith("127.0.0.1:")
        assert "stray" not in repr(generation.headers)
        assert world.key["key"] not in repr(generation.headers)


async def test_no_header_of_upstream_reaches_a_caller(world):
    """Neither cookies nor CORS, caching, server names or odd types come out."""
    loud = {
        "Set-Cookie": "upstream=1",
        "Access-Control-Allow-Origin": "*",
        "Server": "upstream",
        "X-Upstream": "1",
        "Cache-Control": "public",
        "WWW-Authenticate": "Upstream",
        "Retry-After": "7777",
    }
    for path in sorted(INFERENCE):
        for script in (Script(headers=loud), Script(headers=loud, status=500)):
            world.sim.play(script)
            answer = await world.post(path, body_of(path, MODEL))
            assert answer.status_code == (502 if script.status else 200)
            assert not set(answer.headers) & {name.lower() for name in loud}, path


async def test_a_redirect_of_upstream_is_not_followed(world):
    """It is a 502, names no place, and leads nowhere."""
    places = ("/api/pull", "http://169.254.169.254/latest/meta-data/")
    for status, location in itertools.product((301, 302, 303, 307, 308), places):
        world.sim.play(Script(status=status, location=location))
        path = "/v1/chat/completions" if status == 302 else "/api/generate"
        answer = await world.post(path, body_of(path, MODEL))
        assert answer.status_code == 502
        assert "location" not in answer.headers
        assert location not in answer.text
    assert world.sim.management == []
    assert set(world.sim.requests) <= {*INFERENCE, "/api/tags"}


FAILURES = (
    400,
    401,
    403,
    404,
    429,
    500,
    503,
)


async def test_upstreams_words_about_a_failure_stay_there(world):
    """Its status is translated, its text with paths, hosts and sign-in links is not repeated."""
    for status in FAILURES:
        text = "open /root/.ollama/models/CANARY-path: http://ollama.internal:11434 failed"
        world.sim.play(Script(status=status, error_text=text))
        expected = {400: 400, 404: 403, 429: 503, 503: 503}.get(status, 502)
        for path in sorted(INFERENCE):
            answer = await world.post(path, body_of(path, MODEL) | {"stream": False})
            assert answer.status_code == expected
            assert "CANARY" not in answer.text
            assert "11434" not in answer.text
            assert ("retry-after" in answer.headers) is (expected == 503)


async def test_no_secret_of_upstream_is_in_any_answer(world):
    """Every route's answer, good and broken, in and out of streams, is free of canaries."""
    said = []
    streams = [
        ("/v1/chat/completions", body_of("/v1/chat/completions", MODEL) | {"stream": True}),
        ("/api/generate", body_of("/api/generate", MODEL)),
    ]
    for script in (
        None,
        Script(ending="error", after=1, error_text="CANARY-error", tokens=5),
        Script(ending="garbage", after=1, tokens=5),
        Script(status=401),
        Script(status=500, error_text="CANARY-error"),
    ):
        world.sim.play(*([script] if script else []))
        for case in cases(world.key["key"]):
            line = f"{case.method} {case.target}"
            answer = await raw_http.ask(world.port, line, case.headers, case.body)
            said.append((line, repr(answer)))
        for path, body in streams:
            said.append((path, (await world.post(path, body)).text))
    assert len(said) > 5 * len(TABLE)
    leaks = [(line, secret) for line, text in said for secret in SECRETS if secret in text]
    assert leaks == []


async def test_show_tells_what_a_model_is_and_no_more(world):
    """Exactly the harmless fields, also when asked to be verbose."""
    for body in (
        {"model": MODEL},
        {"model": MODEL, "verbose": True, "system": "x", "template": "y", "options": {}},
    ):
        shown = (await world.post("/api/show", body)).json()
        assert shown.keys() <= {"details", "model_info", "capabilities", "modified_at"}


class Prying:
    """A transport that fails inside the gateway with all that it was given in its text."""

    async def __aenter__(self):
        """Open nothing."""
        return self

    async def __aexit__(self, *_):
        """Close nothing."""

    async def handle_async_request(self, request):
        """Answer discovery, and break on everything else."""
        if request.url.path == "/api/tags":
            tags = {"models": [{"name": MODEL, "model": MODEL}]}
            return httpx.Response(200, content=orjson.dumps(tags))
        content = await request.aread()
        raise RuntimeError(f"cannot send {content!r} {request.headers!r}")


PROMPT = "PROMPT-canary-4711"
HEADER = "HEADER-canary-4712"


async def talk(world):
    """Make good, refused, malformed and broken calls, all with canaries."""
    key = world.key["key"]
    stray = {"X-Stray": HEADER, "Cookie": HEADER, "User-Agent": HEADER, "Origin": HEADER}
    bad = f"{key[:-4]}AAAA"
    for path in sorted(INFERENCE):
        text = orjson.dumps(body_of(path, MODEL)).replace(b'"hi"', f'"{PROMPT}"'.encode())
        for auth in (world.auth(), {"x-api-key": bad}, {"authorization": f"Basic {HEADER}"}):
            for content in (text, text[:-1], text.replace(b"model", PROMPT.encode(), 1)):
                await world.client.post(f"{path}?q={HEADER}", content=content, headers=auth | stray)
    named = {"model": PROMPT, "prompt": PROMPT, "options": {"seed": PROMPT}, PROMPT: 1}
    await world.post("/api/generate", named)
    await world.client.get(f"/{key}/v1/models", headers=stray)
    for smuggled in (f"GET /api/tags\x01 {HEADER}", f"GET /{HEADER}\xff"):
        async with raw_http.connect(world.port) as client:
            await client.send(raw_http.request(smuggled, {"Authorization": f"Bearer {key}"}))
            await client.closed()
    websocket = {"Upgrade": "websocket", "Connection": "Upgrade", "Sec-WebSocket-Key": HEADER}
    odd = {"Sec-WebSocket-Extensions": HEADER + "\xff", "Sec-WebSocket-Version": "13"}
    async with raw_http.connect(world.port) as client:
        await client.send(raw_http.request("GET /api/chat", websocket | odd))
        await client.closed()


async def traces(world):
    """Return every row of every table of ours as text."""
    tables = await world.rows(
        "SELECT table_name FROM information_schema.tables WHERE table_schema = 'gateway'"
    )
    found = {}
    for row in tables:
        name = row["table_name"]
        rows = await world.rows(f'SELECT t::text AS text FROM gateway."{name}" t')
        found[name] = "\n".join(item["text"] for item in rows)
    assert "audit_log" in found
    return found


@pytest.mark.parametrize("kind", ["served", "died", "hung up", "bug"])
async def test_prompts_keys_and_headers_leave_no_trace(database, redis_url, capfd, kind):
    """Neither a log line at the debug level nor any table holds a word of what was sent."""
    transport: Any = Prying() if kind == "bug" else None
    async with open_world(database, redis_url, log_level="debug", transport=transport) as world:
        if kind == "died":
            world.sim.play(Script(ending="die", tokens=5, after=2))
        if kind == "hung up":
            world.sim.play(Script(head_delay=600))
            body = orjson.dumps(body_of("/api/chat", MODEL)).replace(b"hi", PROMPT.encode())
            async with raw_http.connect(world.port) as client:
                await client.send(raw_http.request("POST /api/chat", world.auth(), body))
                with trio.fail_after(raw_http.LIMIT):
                    await world.sim.until(lambda sim: sim.open == 1)
            world.sim.play()
        await talk(world)
        await world.settled()
        await world.gateway.audit.flush()
        rows = await traces(world)
        key, public_id = world.key["key"], world.key["public_id"]
        world.gateway.begin_drain()
    logged = "".join(capfd.readouterr())
    assert "drain_begun" in logged
    assert ("RuntimeError" in logged) is (kind == "bug")
    secret = key.rpartition("-")[2]
    for words in (PROMPT, HEADER, key, secret, secret[:-8]):
        assert words not in logged
        assert [name for name, text in rows.items() if words in text] == []
    assert [name for name, text in rows.items() if public_id in text] == [
        name for name in rows if name in {"api_keys", "admin_events"}
    ]


async def test_another_address_on_the_loopback_cannot_say_who_it_is(world):
    """Without trusted proxies X-Forwarded-For is no evidence."""
    async with raw_http.connect(world.port, "127.0.0.9") as client:
        headers = {"X-Forwarded-For": "203.0.113.9", "Forwarded": "for=203.0.113.9"}
        await client.send(raw_http.request("GET /api/pull", headers))
        assert (await client.answer()).status == 403
    rows: list[dict[str, Any]] = []
    with trio.fail_after(raw_http.LIMIT):
        while not rows:
            rows = await world.rows("SELECT client FROM gateway.audit_log")
    assert rows == [{"client": "127.0.0.9"}]
