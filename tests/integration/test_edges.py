"""Sizes, times and credentials at their edges, over raw sockets."""

from __future__ import annotations

import contextlib
import time

import orjson
import pytest
import trio

from tests import raw_http
from tests.world import open_world
from trio_gateway.simulator.script import Script

BODY = b'{"model":"llama3.2","messages":[{"role":"user","content":"one two"}],"stream":false}'
STREAM = b'{"model":"llama3.2","messages":[{"role":"user","content":"one two"}]}'
CHAT = "POST /api/chat"


async def serves(world):
    """Whether a plain call still works."""
    answer = await world.post("/api/chat", orjson.loads(BODY))
    return answer.status_code == 200


async def test_two_keys_are_refused(world):
    """Two fields of a kind are 400, also when equal; two kinds that disagree are 401."""
    key = world.key["key"]
    bearer, plain = ("Authorization", f"Bearer {key}"), ("X-Api-Key", key)
    other = "sk-tg-" + "x" * 57
    for pairs, status in (
        ([bearer, bearer], 400),
        ([bearer, ("Authorization", f"Bearer {other}")], 400),
        ([plain, plain], 400),
        ([plain, ("X-Api-Key", other)], 400),
        ([bearer, plain], 200),
        ([bearer, ("X-Api-Key", other)], 401),
        ([("Authorization", f"Bearer {other}"), plain], 401),
        ([("Authorization", "Basic eDp5"), plain], 401),
        ([bearer, ("X-Api-Key", "")], 401),
        ([bearer, ("X_Api_Key", other)], 200),
        ([("X_Api_Key", key)], 401),
        ([("Authorization_", f"Bearer {key}")], 401),
        ([("Api-Key", key)], 401),
        ([("Cookie", f"authorization=Bearer {key}; x-api-key={key}")], 401),
        ([("Proxy-Authorization", f"Bearer {key}")], 401),
    ):
        answer = await raw_http.ask(world.port, "GET /api/tags", pairs)
        assert answer.status == status, pairs
        assert answer.header("x-request-id")


async def test_spellings_of_the_scheme_that_clients_use_are_taken(world):
    """The scheme in any case and with more spaces; the key itself is exact."""
    key = world.key["key"]
    for value, status in (
        (f"bearer {key}", 200),
        (f"BEARER   {key}  ", 200),
        (f"Bearer\t{key}", 401),
        (f"Bearer{key}", 401),
        (f"Token {key}", 401),
        (key, 401),
        (f"Bearer {key.upper()}", 401),
        (f"Bearer {key} x", 401),
        (f"Bearer {key[:-1]}", 401),
        (f"Bearer {key}\xa0", 401),
        (f"Bearer \u00e9{key}", 401),
        (f"Bearer {key}' OR '1'='1", 401),
        ("Bearer %00", 401),
        ("Bearer", 401),
        ("", 401),
        (",", 401),
    ):
        answer = await raw_http.ask(world.port, "GET /api/tags", [("Authorization", value)])
        assert answer.status == status, value.replace(key, "KEY")


async def test_a_key_in_the_query_string_is_ignored_and_query_strings_stay_here(world):
    """It opens nothing, changes nothing, and no part of a query reaches upstream."""
    key = world.key["key"]
    query = f"?api_key={key}&key={key}&access_token={key}&model=secret-model&x-api-key={key}"
    assert (await world.client.get("/api/tags" + query)).status_code == 401
    answer = await world.client.post(
        "/api/chat" + query, content=BODY, headers=world.auth() | {"X-Sim": "query"}
    )
    assert answer.status_code == 200
    (generation,) = world.sim.generations
    assert generation.path == "/api/chat"
    assert generation.model == "llama3.2:latest"
    assert set(world.sim.requests) <= {"/api/chat", "/api/tags"}


@pytest.mark.parametrize("chunked", [False, True])
async def test_a_body_over_the_limit_is_413(database, redis_url, chunked):
    """With its length announced it is refused at once; without, once the limit is passed."""
    async with open_world(database, redis_url, max_body_bytes=2048) as world:
        content = b" " * 4000 + BODY

        async def pieces():
            for start in range(0, len(content), 500):
                yield content[start : start + 500]

        for path in ("/api/chat", "/v1/chat/completions", "/api/show"):
            given = pieces() if chunked else content
            answer = await world.client.post(path, content=given, headers=world.auth())
            assert answer.status_code == 413, path
            error = answer.json()["error"]
            if path.startswith("/v1"):
                assert error["code"] == "request_too_large"
        fits = b" " * (2048 - len(BODY)) + BODY
        answer = await world.client.post("/api/chat", content=fits, headers=world.auth())
        assert answer.status_code == 200
        assert world.sim.started == 1


async def test_a_refusal_is_heard_although_the_body_was_not_wanted(world):
    """A caller that is still sending gets its answer whole, and then the connection's end."""
    for line, headers, status in (
        ("POST /api/pull", world.auth(), 403),
        ("DELETE /api/chat", world.auth(), 405),
        (CHAT, {}, 401),
        (CHAT, world.auth() | {"Content-Encoding": "gzip"}, 415),
    ):
        async with raw_http.connect(world.port) as client:
            length = {"Content-Length": str(4_000_000)}
            await client.send(raw_http.request(line, headers | length))
            for _ in range(40):
                await client.send(b"x" * 100_000)
            answer = await client.answer()
            assert answer.status == status
            assert "error" in answer.json()


async def test_a_huge_announced_body_is_refused_without_reading_it(world):
    """The answer comes although no byte of the body was sent."""
    headers = world.auth() | {"Content-Length": str(10**12)}
    async with raw_http.connect(world.port) as client:
        await client.send(raw_http.request(CHAT, headers))
        assert (await client.answer()).status == 413


async def test_an_unproven_caller_gets_its_401_without_sending_a_body(world):
    """Nothing of a body is waited for before the key is proven."""
    async with raw_http.connect(world.port) as client:
        await client.send(raw_http.request(CHAT, {"Content-Length": "1000"}))
        assert (await client.answer()).status == 401


CODINGS = (
    "gzip",
    "zstd",
    "br",
    "deflate",
    "identity",
    "identity,zstd",
    "",
    "x",
)


async def test_any_content_encoding_is_415(world):
    """Also `identity`: what is not sent cannot be read in two ways."""
    for coding in CODINGS:
        headers = world.auth() | {"Content-Encoding": coding}
        for path in ("/api/chat", "/v1/chat/completions", "/v1/embeddings", "/api/show"):
            answer = await world.client.post(path, content=BODY, headers=headers)
            assert answer.status_code == 415, path
        assert world.sim.started == 0


async def test_content_type_is_not_asked_for(world):
    """`curl -d` sends a form's; what counts is that the body is JSON."""
    for kind in ("application/x-www-form-urlencoded", "text/plain", "multipart/form-data", ""):
        headers = world.auth() | {"Content-Type": kind}
        answer = await world.client.post("/api/chat", content=BODY, headers=headers)
        assert answer.status_code == 200, kind
    parts = await world.client.post("/api/chat", files={"model": b"llama3.2"}, headers=world.auth())
    assert parts.status_code == 400


async def test_a_body_that_does_not_arrive_in_time_is_408(database, redis_url):
    """A slow upload ends by BODY_TIMEOUT, audited, and its connection with it."""
    async with open_world(database, redis_url, body_timeout=0.2) as world:
        async with raw_http.connect(world.port) as client:
            headers = world.auth() | {"Content-Length": "100"}
            await client.send(raw_http.request(CHAT, headers) + b'{"model"')
            assert (await client.answer()).status == 408
            await client.closed()
        assert world.sim.started == 0


async def test_idle_and_half_sent_connections_hold_up_nobody(database, redis_url):
    """Silent, half-sent and answered connections are closed when idle; calls go on."""
    async with (
        open_world(database, redis_url, keep_alive=5) as world,
        contextlib.AsyncExitStack() as stack,
    ):
        slow = [await stack.enter_async_context(raw_http.connect(world.port)) for _ in range(20)]
        for client in slow[:5]:
            await client.send(b"GET /api/tags HTTP/1.1\r\nHost: a\r\nAuthorizat")
        for client in slow[5:10]:
            await client.send(raw_http.request(CHAT, world.auth(), BODY))
            assert (await client.answer()).status == 200
        assert await serves(world)
        for client in slow:
            await client.closed()


async def test_a_client_that_only_waits_for_100_continue_is_told_to_go_on(world):
    """Expect: 100-continue works, as curl needs it for large bodies."""
    headers = world.auth() | {"Expect": "100-continue", "Content-Length": str(len(BODY))}
    async with raw_http.connect(world.port) as client:
        await client.send(raw_http.request(CHAT, headers))
        assert b"100" in await client.until(b"\r\n\r\n")
        await client.send(BODY)
        assert (await client.answer()).status == 200


async def test_pipelined_requests_are_answered_in_order(world):
    """Each gets its own answer and its own row."""
    async with raw_http.connect(world.port) as client:
        one = raw_http.request(CHAT, world.auth(), BODY)
        await client.send(one + raw_http.request("GET /api/version", world.auth()) + one)
        answers = [await client.answer() for _ in range(3)]
    assert [answer.status for answer in answers] == [200, 200, 200]
    assert "version" in answers[1].json()
    assert len({answer.header("x-request-id") for answer in answers}) == 3
    assert [row["outcome"] for row in await world.ledger()] == ["completed", "completed"]


@pytest.mark.parametrize("phase", ["head", "tokens"])
@pytest.mark.parametrize("reset", [False, True])
async def test_a_hangup_behind_pipelined_bytes_stops_the_gpu(world, phase, reset):
    """The end of the connection is seen within 100 ms although nobody reads it.

    The best of several, as others work too.
    """
    script = Script(head_delay=600) if phase == "head" else Script(tokens=60_000, token_gap=0.01)
    world.sim.play(script)
    took: list[float] = []
    while not took or (min(took) >= 0.1 and len(took) < 5):
        took.append(await until_the_gpu_stops(world, phase, reset=reset))
        assert world.sim.started == len(took)
    assert min(took) < 0.1, took
    assert [row["outcome"] for row in await world.ledger()] == ["aborted"] * len(took)


async def until_the_gpu_stops(world, phase, *, reset):
    """Hang up behind pipelined bytes; return after how many seconds upstream saw it."""
    async with raw_http.connect(world.port) as client:
        one = raw_http.request(CHAT, world.auth(), STREAM)
        await client.send(one + one + b"GET / HTT")
        with trio.fail_after(raw_http.LIMIT):
            await world.sim.until(
                lambda sim: sim.open == 1 and (phase == "head" or sim.generations[-1].tokens > 3)
            )
            left = time.monotonic()
            client.leave(reset=reset)
            await world.sim.until(lambda sim: sim.open == 0)
    await world.settled()
    return world.sim.generations[-1].ended_at - left
