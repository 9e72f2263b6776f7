"""Live calls as operators see them, and the end that they can put to one."""

import pytest
import trio

from tests.integration.caller import PATIENCE, SHAPES, calling, dispatched, ended
from tests.world import open_world
from trio_gateway.services.account_rows import NotFound
from trio_gateway.services.calls import Calls
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
