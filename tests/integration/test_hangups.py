"""Whoever leaves stops the GPU and closes the account, in every phase of a call."""

from __future__ import annotations

import contextlib
import time

import orjson
import pytest
import redis
import trio
import trio.testing

from tests.integration.caller import (
    NATIVE,
    OPENAI,
    PATIENCE,
    SHAPES,
    SOON,
    WHOLE,
    calling,
    connected,
    dispatched,
    ended,
    idle,
    lines,
    locked,
    request,
    until,
)
from tests.world import open_world
from trio_gateway.simulator.script import Script

ESTIMATE = 8  # of "one two three": ceil(13 / 4) + 4
SLOW = Script(tokens=50, token_gap=60)

each_shape = pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
WAYS = ("close", "reset", "half-close")
PAIRS = list(zip(SHAPES.values(), WAYS, strict=True))
each_way = pytest.mark.parametrize("way", WAYS)


async def go(caller, way):
    """Leave in one of three ways; return when."""
    if way == "reset":
        return caller.reset()
    if way == "close":
        return await caller.leave()
    now = time.monotonic()
    await caller.stream.send_eof()
    return now


async def closed_upstream(world, left, limit=SOON):
    """Wait until upstream has seen the end of its one generation, soon after the client left."""
    await until(lambda: not world.sim.open, limit)
    generation = world.sim.generations[-1]
    assert generation.end == "disconnected"
    assert generation.ended_at - left < limit


async def answering(caller, shape):
    """Wait until the answer has begun, where that can be seen."""
    if shape.stream:
        await caller.until(b"t0")


async def metered(world, tokens):
    """Wait until the one live call has counted so many tokens."""
    live = world.gateway.gate.quota.live
    await until(lambda: [hold.output for hold in live.values()] == [tokens])


@each_way
@each_shape
async def test_a_hangup_midway_closes_upstream_and_charges_what_was_seen(world, shape, way):
    """Between two tokens: aborted, partial, one token charged beside the prompt."""
    world.sim.play(SLOW)
    async with calling(world, shape) as caller:
        await answering(caller, shape)
        await metered(world, 1)
        await closed_upstream(world, await go(caller, way))
        row = await ended(world)
    assert (row["outcome"], row["basis"]) == ("aborted", "partial")
    assert (row["prompt_tokens"], row["completion_tokens"]) == (ESTIMATE, 1)
    assert row["status_code"] == (200 if shape.stream else 499)


@pytest.mark.parametrize(("shape", "way"), PAIRS, ids=SHAPES)
async def test_a_hangup_while_the_model_loads_charges_the_prompt(world, shape, way):
    """Before upstream's first byte: aborted, estimated, nothing but the prompt charged."""
    world.sim.play(Script(head_delay=60))
    async with calling(world, shape) as caller:
        await dispatched(world)
        await closed_upstream(world, await go(caller, way))
        row = await ended(world)
    assert (row["outcome"], row["basis"], row["charged_tokens"]) == (
        "aborted",
        "estimated",
        ESTIMATE,
    )
    assert (row["status_code"], row["ttft_ms"]) == (499, None)


@each_shape
async def test_a_hangup_while_queued_costs_nothing(database, redis_url, shape):
    """A call that leaves the line never reaches upstream, and its row has basis none."""
    async with open_world(database, redis_url, backend_slots=1) as world:
        world.sim.play(SLOW)
        backends = world.gateway.gate.backends
        async with calling(world, NATIVE) as first:
            await first.until(b"t0")
            async with calling(world, shape) as second:
                await until(lambda: backends.waiting == 1)
                second.reset()
                await until(lambda: backends.waiting == 0, SOON)
                await until(lambda: len(world.gateway.live) == 1, SOON)
        await idle(world)
        (row,) = [row for row in await world.ledger() if row["backend"] is None]
        assert (row["outcome"], row["basis"], row["charged_tokens"]) == ("aborted", "none", 0)
        assert world.sim.started == 1


@each_shape
async def test_a_hangup_while_reserving_leaves_no_hold(world, shape):
    """Redis answers after the client has left: the hold that it took is settled, at no cost."""
    await world.post(NATIVE.path, NATIVE.body())  # everything warm
    await world.settled()
    with contextlib.closing(redis.Redis.from_url(world.gateway.settings.redis_url)) as admin:
        admin.execute_command("CLIENT", "PAUSE", "600000", "WRITE")
        try:
            async with calling(world, shape) as caller:
                await until(lambda: world.gateway.gate.backends.in_flight == 1)
                caller.reset()
                await trio.testing.wait_all_tasks_blocked(0.02)  # the hang-up has been seen
        finally:
            admin.execute_command("CLIENT", "UNPAUSE")
        await idle(world)
    row = (await world.ledger())[-1]
    assert (row["outcome"], row["basis"], row["charged_tokens"]) == ("aborted", "none", 0)
    assert world.sim.started == 1


@pytest.mark.parametrize("way", ["close", "reset"])
async def test_a_hangup_inside_the_body_leaves_nothing(world, way):
    """A call whose body never came whole was not admitted: no row, no hold, nothing upstream."""
    async with connected(world) as caller:
        await caller.stream.send_all(request(world, NATIVE.path, NATIVE.body(), length=9999))
        await until(lambda: len(world.gateway.live) == 1)
        await go(caller, way)
        await until(lambda: len(world.gateway.live) == 0, SOON)
    await idle(world)
    assert await world.ledger() == []
    assert world.sim.started == 0


async def test_a_hangup_while_the_key_is_being_proven_leaves_nothing(world):
    """A client that leaves while its row is being read is not waited for."""
    async with locked(world, "gateway.api_keys") as waiting, calling(world, NATIVE) as caller:
        await waiting()
        caller.reset()
        await until(lambda: world.gateway.hangups.watching == 0, SOON)
    await idle(world)
    assert (await world.ledger(), world.sim.started) == ([], 0)


@each_shape
async def test_a_hangup_between_head_and_body_closes_upstream(world, shape):
    """The body is never asked for, as the client left with the head: the call ends all the same."""
    world.sim.play(SLOW if shape.stream else Script(tokens=3, token_gap=0.001))
    body = orjson.dumps(shape.body())
    gone = trio.Event()
    sent = []

    coming = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive():
        if coming:
            return coming.pop()
        await gone.wait()
        return {"type": "http.disconnect"}

    async def send(message):
        sent.append(message)
        if message["type"] == "http.response.start":
            gone.set()
            await trio.sleep_forever()  # the head is on its way, and the client is gone

    with trio.fail_after(PATIENCE):
        await world.app(scope(world, shape, body), receive, send)
    row = await ended(world)
    assert [message["type"] for message in sent] == ["http.response.start"]
    if shape.stream:
        assert (row["outcome"], row["basis"]) == ("aborted", "partial")
        assert world.sim.generations[0].end == "disconnected"
    else:
        assert (row["outcome"], row["basis"]) == ("completed", "final")


def scope(world, shape, body):
    """Write an ASGI scope as hypercorn would."""
    headers = [
        (b"host", b"gateway"),
        (b"authorization", world.auth()["authorization"].encode()),
        (b"content-length", str(len(body)).encode()),
    ]
    return {
        "type": "http",
        "http_version": "1.1",
        "asgi": {"spec_version": "2.3", "version": "3.0"},
        "method": "POST",
        "scheme": "http",
        "path": shape.path,
        "raw_path": shape.path.encode(),
        "query_string": b"",
        "root_path": "",
        "headers": headers,
        "client": ("127.0.0.1", 1),
        "server": ("127.0.0.1", world.port),
        "extensions": {},
        "state": {},
    }


@each_shape
async def test_a_hangup_behind_pipelined_bytes_is_seen(world, shape):
    """Bytes behind the request stop the server's reading, not the gateway's eyes."""
    world.sim.play(Script(head_delay=60))
    async with calling(world, shape) as caller:
        await caller.stream.send_all(request(world, NATIVE.path, NATIVE.body()))
        await dispatched(world)
        await closed_upstream(world, caller.reset())
        row = await ended(world)
    assert (row["outcome"], world.sim.started) == ("aborted", 1)


@pytest.mark.parametrize("shape", [NATIVE, OPENAI], ids=["native", "openai"])
async def test_a_client_that_stops_reading_is_cut_off(database, redis_url, shape):
    """After WRITE_STALL_TIMEOUT upstream is closed, the account settled, the connection reset."""
    async with open_world(database, redis_url, write_stall_timeout=0.3) as world:
        world.sim.play(Script(flood=True))
        limit = {"options": {"num_predict": 10**7}} if shape is NATIVE else {"max_tokens": 10**7}
        async with calling(world, shape, buffer=4096, **limit) as caller:
            await dispatched(world)
            with trio.fail_after(PATIENCE):
                await world.sim.until(lambda sim: not sim.open)
            row = await ended(world)
            with pytest.raises(trio.BrokenResourceError):
                await caller.rest()
    assert (row["outcome"], row["basis"]) == ("aborted", "partial")
    assert 0 < row["completion_tokens"] <= world.sim.generations[0].tokens
    assert b"[DONE]" not in caller.received[-200:]


@each_shape
async def test_a_client_that_leaves_after_the_last_byte_has_a_completed_call(world, shape):
    """Closing the connection right behind the end changes nothing."""
    async with calling(world, shape) as caller:
        await caller.until({NATIVE: b'"done":true', OPENAI: b"[DONE]", WHOLE: b'"usage"'}[shape])
        caller.reset()
        row = await ended(world)
    assert (row["outcome"], row["basis"], row["status_code"]) == ("completed", "final", 200)


async def test_leaving_frees_the_slot_for_the_next_in_line(database, redis_url):
    """The queue moves on as soon as the one at the front hangs up."""
    async with open_world(database, redis_url, backend_slots=1) as world:
        world.sim.play(Script(tokens=9, token_gap=60, times=1))
        async with calling(world, NATIVE) as first, trio.open_nursery() as nursery:
            await first.until(b"t0")
            answers = []

            async def second():
                answers.append(await world.post(NATIVE.path, NATIVE.body()))

            nursery.start_soon(second)
            await until(lambda: world.gateway.gate.backends.waiting == 1)
            first.reset()
            await until(lambda: answers)
        assert lines(answers[0].content)[-1]["done"] is True
        await idle(world)
        assert [row["outcome"] for row in await world.ledger()] == ["aborted", "completed"]


async def test_twenty_hangups_at_once_leave_nothing(world):
    """A crowd that leaves together is settled one by one, each exactly once."""
    world.sim.play(SLOW)
    async with contextlib.AsyncExitStack() as stack:
        callers = [await stack.enter_async_context(calling(world, NATIVE)) for _ in range(20)]
        await until(lambda: len(world.gateway.gate.quota.live) == 20)
        for caller in callers:
            caller.reset()
        await idle(world)
    rows = await world.ledger()
    assert len(rows) == len({row["request_id"] for row in rows}) == 20
    assert {row["outcome"] for row in rows} == {"aborted"}
    spent = await world.rows("SELECT charged FROM gateway.spend WHERE scope LIKE 't:%'")
    assert sum(row["charged"] for row in spent) == sum(row["charged_tokens"] for row in rows)
