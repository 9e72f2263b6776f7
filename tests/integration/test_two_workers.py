"""Two workers on one socket, by `serve` and by stock hypercorn: both keep the same promises."""

from __future__ import annotations

import signal
import time
from collections import Counter

import httpx
import pytest
import trio

from tests import stores as test_stores
from tests.integration import fleet as fleets
from tests.integration.calls import (
    SLOTS,
    bearer,
    books_agree,
    chat,
    office,
    on_one_worker,
    spread,
    stream,
)
from tests.integration.fleet import HOW, STOP_LIMIT, until

DRAIN = 5  # seconds
LATE = 20  # seconds; the stream itself would last for an hour
SLOW = {"token_gap": 0.1, "tokens": 60_000}


@pytest.fixture(scope="module")
def sim(tmp_path_factory):
    with fleets.ollama(tmp_path_factory.mktemp("ollama")) as running:
        yield running


@pytest.fixture(scope="module", params=HOW)
def installation(request, stores, sim, tmp_path_factory):
    """A fleet on a database of its own, shared by the tests that leave it alive."""
    folder = tmp_path_factory.mktemp(request.param)
    redis_url = test_stores.fresh_redis(stores)
    with (
        test_stores.fresh_database(stores) as database,
        fleets.fleet(
            request.param,
            folder,
            (database, redis_url),
            sim.url,
            tenant_in_flight=200,
            backend_slots=SLOTS,
            drain_timeout=DRAIN,
        ) as running,
    ):
        yield running


@pytest.fixture
async def desk(installation, sim):
    await sim.forget()
    async with office(installation.database_url) as opened:
        yield opened


@pytest.fixture
async def client(installation):
    limits = httpx.Limits(max_connections=200, max_keepalive_connections=0)
    async with httpx.AsyncClient(
        base_url=installation.base_url, timeout=60, limits=limits
    ) as opened:
        yield opened


def books(installation):
    return installation.database_url, installation.redis_url


async def test_every_kind_of_call_works_and_is_booked(installation, desk, client):
    """Native and OpenAI, streamed and whole: one row each, with upstream's own counts."""
    key = await desk.key("kinds")
    for path in ("/api/chat", "/v1/chat/completions"):
        for streamed in (True, False):
            answer = await client.post(path, json=chat(stream=streamed), headers=bearer(key))
            assert answer.status_code == 200
            assert "Echo" in answer.text
            assert (b"[DONE]" in answer.content) == (streamed and path.startswith("/v1"))
    rows = await desk.settled(key, 4)
    assert {(row["outcome"], row["basis"], row["completion_tokens"]) for row in rows} == {
        ("completed", "final", 4)
    }
    assert (await client.get("/readyz")).text == "ready"
    assert len(installation.workers()) == 2


async def test_calls_that_race_on_both_workers_admit_exactly_what_fits(desk, client, installation):
    """A hundred calls for the last 99 places of a window: 99 get in, one is refused."""
    key = await desk.key("race", requests_per_minute=99, tokens_per_minute=None)
    seen: Counter[int] = Counter()

    async def call():
        answer = await client.post("/api/chat", json=chat(stream=False), headers=bearer(key))
        seen[answer.status_code] += 1

    async with trio.open_nursery() as nursery:
        for _ in range(100):
            nursery.start_soon(call)
    assert seen == {200: 99, 429: 1}
    await desk.settled(key, 99)
    await books_agree(books(installation))


async def test_a_budget_that_holds_one_call_admits_one_of_many(desk, client, sim):
    """Twenty parallel calls, budget for the hold of one: one is dispatched."""
    await sim.play({"token_gap": 0.2})
    key = await desk.key("budget", budget=120, budget_period="total")
    seen: Counter[int] = Counter()

    async def call():
        body = chat(stream=False, options={"num_predict": 100})
        answer = await client.post("/api/chat", json=body, headers=bearer(key))
        seen[answer.status_code] += 1

    async with trio.open_nursery() as nursery:
        for _ in range(20):
            nursery.start_soon(call)
    assert seen[200] + seen[429] == 20
    rows = await desk.settled(key, seen[200])
    # what one hold leaves over may still be worth a short answer
    assert sum(row["held_tokens"] for row in rows) <= 120
    assert sum(row["charged_tokens"] for row in rows) <= 120


async def test_revocation_by_sql_cuts_on_both_workers_within_a_second(
    installation, desk, client, sim
):
    """INSERT INTO gateway.revocations: streams on both end with the error, new calls get 401."""
    await sim.play(SLOW)
    key, other = await desk.key("revoked"), await desk.key("untouched")
    async with trio.open_nursery() as nursery:
        calls = await spread(nursery, installation, key)
        bystander = await stream(nursery, installation.base_url, other)
        cut_at = time.monotonic()
        await desk.postgres.fetch(
            "INSERT INTO gateway.revocations (key_id, reason) VALUES ($1, 'test')", key["id"]
        )
        with trio.fail_after(STOP_LIMIT):
            for call in calls:
                await call.ended.wait()
        assert max(call.ended_at for call in calls) - cut_at < 1
        for call in calls:
            error = call.last["error"]
            code = error["code"] if isinstance(error, dict) else error
            assert code == "invalid_api_key" or "key" in code.lower()
            assert "data: [DONE]" not in call.lines
        for _ in range(12):
            answer = await client.post("/api/chat", json=chat(), headers=bearer(key))
            assert answer.status_code == 401
        assert not bystander.ended.is_set()
        bystander.scope.cancel()
    rows = await desk.settled(key, len(calls))
    assert {row["outcome"] for row in rows} == {"revoked"}
    (row,) = await desk.settled(other, 1)
    assert row["outcome"] == "aborted"
    state = await sim.state(open=0)
    assert state["open"] == 0


async def test_hanging_up_closes_upstream_on_both_workers(installation, desk, sim):
    """Every upstream connection is closed within a tenth of a second or so of the hang-up."""
    await sim.play(SLOW)
    key = await desk.key("leaver")
    async with trio.open_nursery() as nursery:
        calls = await spread(nursery, installation, key)
        left_at = time.monotonic()
        for call in calls:
            call.scope.cancel()
        state = await sim.state(open=0)
    assert state["open"] == 0
    assert max(each["ended_at"] for each in state["generations"]) - left_at < 1
    assert {each["end"] for each in state["generations"]} == {"disconnected"}
    rows = await desk.settled(key, len(calls))
    assert {(row["outcome"], row["basis"]) for row in rows} == {("aborted", "partial")}


async def test_sigterm_lets_streams_end_and_cuts_what_outlives_the_drain(installation, desk, sim):
    """A short stream gets its end and `completed`; a long one is `drained`; both are settled.

    The other worker leaves much earlier, which must not hurry the other. The last test of
    each installation, which it ends.
    """
    await sim.play(
        {"model": "llama3.2", "token_gap": 0.05, "tokens": 20},
        {"model": "qwen3:8b", "token_gap": 0.1, "tokens": 60_000},
    )
    short, long = await desk.key("short"), await desk.key("long")
    async with trio.open_nursery() as nursery:
        _, slow = await on_one_worker(nursery, installation, long, 3, model="qwen3:8b")
        quick = await stream(nursery, installation.base_url, short)
        installation.descendants()
        told = time.monotonic()
        installation.send(signal.SIGTERM)
        with trio.fail_after(STOP_LIMIT):
            for call in (quick, *slow):
                await call.ended.wait()
    assert await installation.ended() == 0
    assert quick.last["done"] is True
    assert quick.ended_at - told < DRAIN
    for call in slow:
        assert DRAIN - 0.5 < call.ended_at - told < DRAIN + LATE
        assert call.broke is not None or set(call.last) == {"error"}
    (row,) = await desk.settled(short, 1)
    assert row["outcome"] == "completed"
    rows = [row for row in await desk.rows(long) if row["outcome"] != "aborted"]
    assert [(row["outcome"], row["basis"]) for row in rows] == [("drained", "partial")] * 3
    await until(lambda: not installation.left())
    await books_agree(books(installation))
    assert (await sim.state(open=0))["open"] == 0
