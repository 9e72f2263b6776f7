"""Live calls as operators see them, and the end that they can put to one."""

import time

import pytest
import trio

from tests.integration.caller import PATIENCE, SHAPES, calling, dispatched, ended
from tests.world import open_world
from trio_gateway.clients import redis
from trio_gateway.services import calls as calls_module
from trio_gateway.services.account_rows import NotFound
from trio_gateway.services.calls import CHUNK, Calls
from trio_gateway.services.quota.keys import INDEX, tenant_keys
from trio_gateway.services.workers import WorkerBoard
from trio_gateway.simulator.script import Script

LAST_WORD = b"An operator ended this call."


@pytest.fixture
async def narrow(database, redis_url):
    """A gateway with one slot."""
    async with open_world(database, redis_url, backend_slots=1) as opened:
        yield opened


def calls_of(world):
    return Calls(world.gateway.redis, world.postgres)


async def listed(calls, count=1):
    """Wait until so many calls are listed."""
    with trio.fail_after(PATIENCE):
        while len(found := await calls.listing()) != count:  # noqa: ASYNC110
            await trio.sleep(0.01)
    return found


@pytest.mark.parametrize("shape", SHAPES)
async def test_a_cut_call_stops_the_gpu_and_tells_its_caller(world, shape):
    """In every dialect: an error at the end, a closed socket upstream, one exact row."""
    world.sim.play(Script(token_gap=60, tokens=9))
    calls = calls_of(world)
    async with calling(world, SHAPES[shape]) as caller:
        await dispatched(world)
        (call,) = await listed(calls)
        assert (call["tenant"], call["key"], call["phase"]) == ("acme", "", "dispatched")
        assert call["model"] == "llama3.2:latest"
        await calls.cut(call["request_id"], "admin:ada")
        await caller.until(LAST_WORD)
    row = await ended(world)
    assert (row["request_id"], row["outcome"]) == (call["request_id"], "cut")
    assert await calls.listing() == []
    (event,) = await world.rows("SELECT * FROM gateway.admin_events WHERE action = 'call.cut'")
    assert (event["actor"], event["subject"]) == ("admin:ada", call["request_id"])


async def test_the_error_of_a_cut_call_is_one_that_clients_do_not_repeat(world):
    """Before the first byte it is a 503 with `x-should-retry: false`."""
    world.sim.play(Script(head_delay=60))
    calls = calls_of(world)
    async with calling(world, SHAPES["whole"]) as caller:
        await dispatched(world)
        (call,) = await listed(calls)
        await calls.cut(call["request_id"], "test")
        received = await caller.until(b"call_cut")
    assert caller.status == 503
    assert b"x-should-retry: false" in received.lower()


async def test_a_call_that_waits_in_line_is_listed_and_cut_for_nothing(narrow):
    """Never dispatched: `refused`, no charge."""
    world = narrow
    world.sim.play(Script(token_gap=60, tokens=9))
    calls = calls_of(world)
    async with calling(world, SHAPES["native"]):
        await dispatched(world)
        async with calling(world, SHAPES["whole"]) as second:
            phases = {call["phase"]: call for call in await listed(calls, 2)}
            await calls.cut(phases["queued"]["request_id"], "test")
            await second.until(LAST_WORD)
            assert second.status == 503
    rows = {row["request_id"]: row for row in await world.ledger()}
    row = rows[phases["queued"]["request_id"]]
    assert (row["outcome"], row["charged_tokens"]) == ("refused", 0)


async def test_a_call_that_is_over_or_made_up_cannot_be_cut(world):
    """It is not found, and nothing is recorded."""
    await world.post("/api/chat", SHAPES["native"].body())
    await world.settled()
    with pytest.raises(NotFound):
        await calls_of(world).cut("req_nothing", "test")
    assert not await world.rows("SELECT FROM gateway.admin_events WHERE action = 'call.cut'")


async def test_the_youngest_call_is_cut_however_many_are_older(world, monkeypatch):
    """What a listing has no room for is found all the same."""
    world.sim.play(Script(token_gap=60, tokens=9))
    monkeypatch.setattr(calls_module, "MOST", 1)
    calls = calls_of(world)
    async with calling(world, SHAPES["native"]):
        (oldest,) = await listed(calls)
        async with calling(world, SHAPES["native"]) as second:
            with trio.fail_after(PATIENCE):
                while await calls.count() < 2:  # noqa: ASYNC110
                    await trio.sleep(0.01)
            assert [call["request_id"] for call in await calls.listing()] == [oldest["request_id"]]
            (youngest,) = set(await request_ids(world)) - {oldest["request_id"]}
            cut = await calls.cut(youngest, "test")
            await second.until(LAST_WORD)
    assert (cut["request_id"], cut["tenant"]) == (youngest, "acme")


async def request_ids(world):
    """Name the calls that are admitted, as their holds do."""
    fields = await world.gateway.redis.command("HKEYS", tenant_keys(world.tenant["id"])[2])
    return [field.decode() for field in fields]


async def test_calls_are_found_among_many_tenants(world, monkeypatch):
    """So many that asking about all of them at once would look like an outage of Redis."""
    idle = [part for at in range(CHUNK * 4) for part in (time.time() + 3600, f"tnt_{at}")]
    await world.gateway.redis.command("ZADD", INDEX, *idle)
    monkeypatch.setattr(redis, "WAITING", CHUNK * 3)
    world.sim.play(Script(token_gap=60, tokens=9))
    calls = calls_of(world)
    async with calling(world, SHAPES["native"]) as caller:
        await dispatched(world)
        (call,) = await listed(calls)
        assert await calls.count() == 1
        await calls.cut(call["request_id"], "test")
        await caller.until(LAST_WORD)


async def test_every_worker_says_how_it_fares(world):
    """Once a second: load, health of backends, and nothing of an address's password."""
    board = WorkerBoard(world.gateway.redis)
    with trio.fail_after(PATIENCE):
        # the first report may be of before the models were discovered
        while not (found := await board.listing()) or not found[0]["backends"][0]["models"]:  # noqa: ASYNC110
            await trio.sleep(0.01)
    (report,) = found
    assert (report["missing"], report["in_flight"], report["waiting"]) == ([], 0, 0)
    (backend,) = report["backends"]
    assert (backend["healthy"], backend["models"]) == (True, 4)
