"""Rate limits over HTTP: what is admitted, what is refused, and what the headers say."""

import re

import pytest
import trio

from tests.integration.caller import NATIVE, dispatched, until
from tests.world import open_world
from trio_gateway.simulator.script import Script

CHAT = {"model": "llama3.2", "messages": [{"role": "user", "content": "one two three"}]}
EMBED = {"model": "nomic-embed-text", "input": "one two three"}
PROMPT = {"model": "llama3.2", "prompt": "one two three"}
ANSWERED = [
    ("/api/chat", CHAT),
    ("/api/chat", CHAT | {"stream": False}),
    ("/api/generate", PROMPT),
    ("/api/generate", PROMPT | {"stream": False}),
    ("/api/embed", EMBED),
    ("/api/embeddings", {"model": "nomic-embed-text", "prompt": "one two three"}),
    ("/v1/chat/completions", CHAT),
    ("/v1/chat/completions", CHAT | {"stream": True}),
    ("/v1/completions", PROMPT),
    ("/v1/completions", PROMPT | {"stream": True}),
    ("/v1/embeddings", EMBED),
]
LIMITS = ("x-ratelimit-", "x-budget-", "retry-after", "x-should-retry")


async def key_with(world, name="limited", **limits):
    return await world.tenant_with_key(name, {"all_models": True} | limits)


def limit_headers(answer):
    return {name for name in answer.headers if name.startswith(LIMITS)}


def code_of(answer):
    """The code of an OpenAI error, or the text of a native one."""
    error = answer.json()["error"]
    return error if isinstance(error, str) else error["code"]


async def test_every_admitted_answer_says_what_is_left(world):
    """Windows and budget, in both dialects, streamed or not; remaining is after the hold."""
    for number, (path, body) in enumerate(ANSWERED):
        key = await key_with(
            world,
            f"tenant-{number}",
            requests_per_minute=10,
            tokens_per_minute=50_000,
            budget=40_000,
            budget_period="day",
        )
        answer = await world.post(path, body, key)
        assert answer.status_code == 200
        held = (await world.ledger())[-1]["held_tokens"]
        expected = {
            "x-ratelimit-limit-requests": "10",
            "x-ratelimit-remaining-requests": "9",
            "x-ratelimit-reset-requests": "1m0s",
            "x-ratelimit-limit-tokens": "50000",
            "x-ratelimit-remaining-tokens": str(50_000 - held),
            "x-ratelimit-reset-tokens": "1m0s",
            "x-budget-limit-tokens": "40000",
            "x-budget-remaining-tokens": str(40_000 - held),
        }
        assert {name: answer.headers.get(name) for name in expected} == expected
        reset = answer.headers["x-budget-reset-tokens"]
        assert re.fullmatch(r"((\d+h)?\d+m)?\d+s|\d+ms", reset)
        assert limit_headers(answer) == {*expected, "x-budget-reset-tokens"}


async def test_an_unlimited_caller_hears_of_no_limit(world):
    """A limit that is not set has no header."""
    for path, body in ANSWERED:
        answer = await world.post(path, body)
        assert (answer.status_code, limit_headers(answer)) == (200, set())


@pytest.mark.parametrize("path", ["/api/chat", "/v1/chat/completions"])
async def test_requests_beyond_the_limit_are_refused_until_the_window_slides(world, path):
    """429 `rate_limit_exceeded`, with the wait, before anything is sent upstream."""
    key = await key_with(world, requests_per_minute=2)
    first, second, third = [await world.post(path, CHAT, key) for _ in range(3)]
    assert [answer.status_code for answer in (first, second, third)] == [200, 200, 429]
    assert second.headers["x-ratelimit-remaining-requests"] == "0"
    assert third.headers["x-ratelimit-remaining-requests"] == "0"
    assert 1 <= int(third.headers["retry-after"]) <= 60
    assert "x-should-retry" not in third.headers
    if path.startswith("/v1"):
        error = third.json()["error"]
        assert (error["type"], error["code"]) == ("rate_limit_error", "rate_limit_exceeded")
    else:
        assert third.json() == {"error": "Requests-per-minute limit reached."}
    assert world.sim.started == 2
    assert len(await world.ledger()) == 2


async def test_tokens_beyond_the_limit_are_refused(world):
    """What was used counts, not what was held; what was held counts while it is held."""
    key = await key_with(world, tokens_per_minute=100)
    body = CHAT | {"max_tokens": 40}
    used = 0
    for _ in range(3):
        answer = await world.post("/v1/chat/completions", body, key)
        assert answer.status_code == 200
        row = (await world.ledger())[-1]
        assert answer.headers["x-ratelimit-remaining-tokens"] == str(
            100 - used - row["held_tokens"]
        )
        used += row["charged_tokens"]
    world.sim.play(Script(tokens=60, token_gap=60))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(world.post, "/v1/chat/completions", CHAT, key)
        await dispatched(world, 4)
        refused = await world.post("/v1/chat/completions", body, key)
        assert (refused.status_code, code_of(refused)) == (429, "rate_limit_exceeded")
        assert refused.headers["x-ratelimit-remaining-tokens"] == "0"
        assert 1 <= int(refused.headers["retry-after"]) <= 60
        nursery.cancel_scope.cancel()


async def test_a_prompt_larger_than_the_window_is_told_not_to_retry(world):
    """No wait would help, and a client that honors the header does not try."""
    key = await key_with(world, tokens_per_minute=100)
    words = [{"role": "user", "content": "word " * 200}]
    for path in ("/api/chat", "/v1/chat/completions"):
        answer = await world.post(path, CHAT | {"messages": words}, key)
        assert answer.status_code == 429
        assert answer.headers["x-should-retry"] == "false"
        assert "retry-after" not in answer.headers
    assert world.sim.started == 0


async def test_zero_is_none(world):
    """A limit of 0 admits nothing."""
    for name in ("requests_per_minute", "tokens_per_minute", "budget"):
        key = await key_with(world, name.replace("_", "-"), **{name: 0})
        answer = await world.post("/v1/chat/completions", CHAT, key)
        assert (answer.status_code, answer.headers["x-should-retry"]) == (429, "false")


async def test_the_tighter_of_key_and_tenant_is_told(world):
    """And it is the one that refuses."""
    await world.accounts.create("both", {"all_models": True, "requests_per_minute": 3})
    narrow = await world.keyring.issue("both", {"requests_per_minute": 1})
    wide = await world.keyring.issue("both", {})
    answer = await world.post("/api/chat", CHAT, narrow)
    assert answer.headers["x-ratelimit-limit-requests"] == "1"
    assert (await world.post("/api/chat", CHAT, narrow)).status_code == 429
    answer = await world.post("/api/chat", CHAT, wide)
    assert answer.headers["x-ratelimit-limit-requests"] == "3"
    assert answer.headers["x-ratelimit-remaining-requests"] == "1"


async def test_a_hundred_calls_at_once_admit_exactly_what_fits(world):
    """Of calls that race for the last units as many are served as fit, and the others refused."""
    key = await key_with(world, requests_per_minute=7, budget=1_000_000)
    statuses = []

    async def ask():
        statuses.append((await world.post("/api/chat", CHAT | {"stream": False}, key)).status_code)

    async with trio.open_nursery() as nursery:
        for _ in range(100):
            nursery.start_soon(ask)
    assert (statuses.count(200), statuses.count(429)) == (7, 93)
    assert len(await world.ledger()) == 7


async def test_a_tenant_has_so_many_calls_in_flight_and_no_more(database, redis_url):
    """The next one is 429 with a short wait; another tenant's is served."""
    async with open_world(database, redis_url, tenant_in_flight=2) as world:
        other = await world.tenant_with_key("other")
        world.sim.play(Script(tokens=9, token_gap=60, times=2))
        async with trio.open_nursery() as nursery:
            for _ in range(2):
                nursery.start_soon(world.post, NATIVE.path, CHAT)
            await dispatched(world, 2)
            answer = await world.post("/v1/chat/completions", CHAT)
            assert (answer.status_code, code_of(answer)) == (429, "rate_limit_exceeded")
            assert answer.headers["retry-after"] == "1"
            assert (await world.post("/api/chat", CHAT, other)).status_code == 200
            nursery.cancel_scope.cancel()
        await until(lambda: not world.gateway.gate.quota.live)
        assert (await world.post("/api/chat", CHAT)).status_code == 200


async def test_a_refused_call_is_in_the_audit_log_and_not_in_the_ledger(world):
    """Refusals before admission cost nothing and are counted apart."""
    key = await key_with(world, requests_per_minute=0)
    assert (await world.post("/api/chat", CHAT, key)).status_code == 429
    await world.gateway.audit.flush()
    rows = await world.rows("SELECT code, status_code FROM gateway.audit_log")
    assert [(row["code"], row["status_code"]) for row in rows] == [("rate_limit_exceeded", 429)]
    assert await world.ledger() == []
