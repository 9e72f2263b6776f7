"""Budgets over HTTP, and what becomes of them while a store is away."""

import contextlib

import pytest
import redis
import trio

from tests.account import empty
from tests.integration.caller import NATIVE, PATIENCE, calling, dispatched, idle, lines, until
from tests.proxy import open_door
from tests.world import open_world
from trio_gateway.clients.bridge import open_bridge
from trio_gateway.clients.postgres import open_postgres
from trio_gateway.pipeline.verify import verify
from trio_gateway.services.quota.keys import tenant_keys
from trio_gateway.simulator.script import Script

CHAT = {"model": "llama3.2", "messages": [{"role": "user", "content": "one two three"}]}
WHOLE = CHAT | {"stream": False}
TOTAL = {"all_models": True, "budget": 100_000, "budget_period": "total"}


async def books_agree(world):
    """Every call has ended and is settled, and nothing is held."""
    await world.settled()
    found = await verify(world.postgres, world.gateway.redis)
    assert (found["differences"], found["holds_open"]) == ([], 0)


@pytest.mark.usefixtures("same_day")
@pytest.mark.parametrize("period", ["day", "month", "total"])
@pytest.mark.parametrize("path", ["/api/chat", "/v1/chat/completions"])
async def test_a_burned_budget_blocks_the_next_call(world, path, period):
    """429 `insufficient_quota`, not to be retried; with the wait, but for a total budget."""
    limits = {"all_models": True, "budget": 40, "budget_period": period}
    key = await world.tenant_with_key("poor", limits)
    remaining = []
    for _ in range(10):
        answer = await world.post(path, WHOLE, key)
        remaining.append(answer.headers["x-budget-remaining-tokens"])
        if answer.status_code != 200:
            break
        await world.settled()
    assert answer.status_code == 429
    assert answer.headers["x-should-retry"] == "false"
    assert answer.headers["x-budget-limit-tokens"] == "40"
    assert ("retry-after" in answer.headers) is (period != "total")
    assert ("x-budget-reset-tokens" in answer.headers) is (period != "total")
    if path.startswith("/v1"):
        error = answer.json()["error"]
        assert (error["type"], error["code"]) == ("insufficient_quota", "insufficient_quota")
    else:
        assert answer.json() == {"error": "The token budget is exhausted."}
    rows = await world.ledger()
    assert len(rows) == world.sim.started == len(remaining) - 1
    assert remaining[-1] == str(40 - sum(row["charged_tokens"] for row in rows))
    await books_agree(world)


async def test_a_call_costs_what_it_used_and_not_what_it_held(world):
    """The next answer's header tells: the hold of the first call came back."""
    key = await world.tenant_with_key("rich", TOTAL)
    await world.post("/api/chat", CHAT, key)
    (row,) = await world.ledger()
    assert row["charged_tokens"] < row["held_tokens"]
    answer = await world.post("/api/chat", CHAT, key)
    expected = 100_000 - row["charged_tokens"] - row["held_tokens"]
    assert answer.headers["x-budget-remaining-tokens"] == str(expected)


async def test_the_answer_is_cut_to_what_the_budget_has_left(world):
    """The ceiling goes upstream, and an upstream that ignores it is cut there."""
    key = await world.tenant_with_key("last", TOTAL | {"budget": 40})
    world.sim.play(Script(flood=True, token_gap=0.001))
    answer = await world.post("/api/chat", CHAT, key)
    final = lines(answer.content)[-1]
    ceiling = world.sim.generations[-1].body["options"]["num_predict"]
    (row,) = await world.ledger()
    assert (final["done"], final["done_reason"]) == (True, "length")
    assert (row["outcome"], row["completion_tokens"]) == ("cut", ceiling)
    assert row["charged_tokens"] == row["held_tokens"] == 40
    assert (await world.post("/api/chat", CHAT, key)).status_code == 429
    await books_agree(world)


async def test_a_hundred_calls_at_the_last_units_admit_exactly_what_fits(world):
    """All at once, one unit short of the next call."""
    probe = await world.tenant_with_key("probe", TOTAL)
    body = WHOLE | {"options": {"num_predict": 30}}
    await world.post("/api/chat", body, probe)
    (row,) = await world.ledger()
    least = row["held_tokens"] - 30 + 16
    key = await world.tenant_with_key(
        "crowd", TOTAL | {"budget": 3 * row["held_tokens"] + least - 1}
    )
    world.sim.play(Script(head_delay=60))
    statuses = []

    async def ask():
        statuses.append((await world.post("/api/chat", body, key)).status_code)

    async with trio.open_nursery() as nursery:
        for _ in range(100):
            nursery.start_soon(ask)
        await until(lambda: len(statuses) == 97 and world.sim.open == 3)
        nursery.cancel_scope.cancel()
    assert statuses == [429] * 97
    await idle(world, (await world.accounts.show("crowd"))["id"])
    await books_agree(world)


async def test_a_change_of_budget_counts_for_the_next_call(world):
    """Up and down, and to another period."""
    key = await world.tenant_with_key("moved", TOTAL | {"budget": 1})
    assert (await world.post("/api/chat", WHOLE, key)).status_code == 429
    for change in ({"budget": 50_000}, {"budget_period": "day"}, {"budget_period": "month"}):
        await world.accounts.update("moved", change)
        await until(lambda: world.gateway.revocations.listening)
        with trio.fail_after(PATIENCE):
            while (answer := await world.post("/api/chat", WHOLE, key)).status_code != 200:
                await trio.lowlevel.checkpoint()
        assert answer.headers["x-budget-limit-tokens"] == "50000"
    await books_agree(world)


async def test_without_redis_nobody_is_admitted(database, redis_url):
    """503 with a wait, never 200; a call in flight goes on and is settled when Redis is back."""
    async with (
        open_door(redis_url) as door,
        open_world(database, door.url, hold_lease=3) as world,
    ):
        key = await world.tenant_with_key("acme2", TOTAL)
        world.sim.play(Script(tokens=30, held=True, times=1))
        async with calling(world, NATIVE, key=key) as caller:
            await caller.until(b"t0")
            door.shut()
            await until(lambda: not world.gateway.redis.connected)
            for path in ("/api/chat", "/v1/chat/completions", "/api/embed"):
                body = {"model": "nomic-embed-text", "input": "x"} if "embed" in path else WHOLE
                answer = await world.post(path, body, key)
                assert answer.status_code == 503
                assert int(answer.headers["retry-after"]) >= 1
            world.sim.play()
            await caller.until(b'"done":true')
        assert world.sim.started == 1
        door.reopen()
        await until(
            lambda: not world.gateway.gate.quota.unsettled and world.gateway.redis.connected
        )
        await idle(world, (await world.accounts.show("acme2"))["id"])
        (row,) = await world.ledger()
        assert (row["outcome"], row["basis"], row["completion_tokens"]) == (
            "completed",
            "final",
            30,
        )
        await books_agree(world)
        answer = await world.post("/api/chat", WHOLE, key)
        expected = 100_000 - row["charged_tokens"] - row["held_tokens"]
        assert answer.headers["x-budget-remaining-tokens"] == str(expected)


async def test_losing_redis_data_mid_stream_changes_no_account(database, redis_url):
    """The hold is put back by its worker, new calls wait for that, and the sums are as before."""
    async with open_world(database, redis_url, hold_lease=1.5) as world:
        key = await world.tenant_with_key("acme2", TOTAL)
        assert (await world.post("/api/chat", WHOLE, key)).status_code == 200
        world.sim.play(Script(tokens=40, held=True, times=1))
        async with calling(world, NATIVE, key=key) as caller:
            await caller.until(b"t0")
            empty(redis_url)
            answer = await world.post("/api/chat", WHOLE, key)
            assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
            with trio.fail_after(PATIENCE):
                while (answer := await world.post("/api/chat", WHOLE, key)).status_code != 200:
                    assert answer.status_code == 503
                    await trio.lowlevel.checkpoint()
            rows = await world.rows("SELECT charged_tokens, held_tokens FROM gateway.ledger")
            spent = sum(row["charged_tokens"] for row in rows[:1])
            held = rows[0]["held_tokens"] * 2
            assert int(answer.headers["x-budget-remaining-tokens"]) == 100_000 - spent - held
            world.sim.play()
            await caller.until(b'"done":true')
        assert [row["outcome"] for row in await world.ledger()] == ["completed"] * 3
        await idle(world, (await world.accounts.show("acme2"))["id"])
        await books_agree(world)


async def test_without_postgres_nobody_new_is_admitted(database, redis_url):
    """503 and never 401, but for a malformed key; the call in flight goes on and is settled."""
    async with (
        open_door(database) as door,
        open_bridge() as bridge,
        open_postgres(bridge, database) as direct,
        open_world(door.url, redis_url, hold_lease=3) as world,
    ):
        key = await world.tenant_with_key("acme2", TOTAL)
        world.sim.play(Script(tokens=30, held=True, times=1))
        async with calling(world, NATIVE, key=key) as caller:
            await caller.until(b"t0")
            door.shut()
            await until(lambda: not world.gateway.revocations.listening)
            for _ in range(2):
                answer = await world.post("/v1/chat/completions", WHOLE, key)
                assert answer.status_code == 503
                assert answer.json()["error"]["code"] == "store_unavailable"
                assert int(answer.headers["retry-after"]) >= 1
            malformed = {"key": key["key"][:-1] + ("a" if key["key"][-1] != "a" else "b")}
            assert (await world.post("/api/chat", WHOLE, malformed)).status_code == 401
            world.sim.play()
            await caller.until(b'"done":true')
        assert await direct.fetch("SELECT 1 FROM gateway.ledger") == []
        assert world.sim.started == 1
        door.reopen()
        await until(lambda: world.gateway.revocations.listening)
        await until(lambda: not world.gateway.gate.quota.live)
        (row,) = await world.ledger()
        assert (row["outcome"], row["completion_tokens"]) == ("completed", 30)
        await books_agree(world)
        assert (await world.post("/api/chat", WHOLE, key)).status_code == 200


@pytest.fixture
def direct(redis_url):
    """A client of Redis that goes through no door."""
    with contextlib.closing(redis.Redis.from_url(redis_url)) as client:
        yield client


async def test_a_reserve_that_was_not_heard_of_costs_nothing(database, redis_url, direct):
    """Redis took the hold and the answer was lost: 503, and the account is closed as refused."""
    async with (
        open_door(redis_url) as door,
        open_world(database, door.url, hold_lease=1.5, sweep_interval=60) as world,
    ):
        key = await world.tenant_with_key("acme2", TOTAL)
        assert (await world.post("/api/chat", WHOLE, key)).status_code == 200
        await world.settled()
        holds = tenant_keys((await world.accounts.show("acme2"))["id"])[2]
        answers = []

        async def ask():
            answers.append(await world.post("/api/chat", WHOLE, key))

        async with trio.open_nursery() as nursery:
            door.swallow()
            nursery.start_soon(ask)
            await until(lambda: direct.hlen(holds))
            await door.swallowed.wait()
            door.cut()
            door.reopen()
        assert answers[0].status_code == 503
        await until(lambda: world.gateway.redis.connected)
        await until(lambda: not world.gateway.gate.quota.doubtful)
        rows = await world.ledger()
        assert [(row["outcome"], row["basis"]) for row in rows] == [
            ("completed", "final"),
            ("refused", "none"),
        ]
        assert rows[1]["charged_tokens"] == 0
        await dispatched(world, 1)
        assert world.sim.started == 1
        await books_agree(world)
