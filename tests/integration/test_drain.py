"""Draining: nobody new is let in, and those inside may finish, but not for ever."""

from __future__ import annotations

import time

import pytest
import trio

from tests.integration.caller import (
    NATIVE,
    OPENAI,
    SHAPES,
    SOON,
    WHOLE,
    calling,
    connected,
    dispatched,
    ended,
    idle,
    request,
    until,
)
from tests.world import open_world
from trio_gateway.core.errors import ShuttingDown
from trio_gateway.simulator.script import Script

LATE = 10.0  # seconds; the call itself would last for an hour
SLOW = Script(tokens=50, token_gap=60)

each_shape = pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)


@each_shape
async def test_a_draining_worker_refuses_new_calls(world, shape):
    """503 with Retry-After, not ready, alive: and the call was not admitted.

    Before that, for a moment, it answers what comes on connections that are still kept, and
    tells them that each answer is the last.
    """
    world.app.begin_drain()
    admitted = 0
    with trio.fail_after(20):
        while (answer := await world.post(shape.path, shape.body())).status_code == 200:
            assert answer.headers["connection"] == "close"
            admitted += 1
    ready = await world.client.get("/readyz")
    alive = await world.client.get("/healthz")
    assert (answer.status_code, ready.status_code, alive.status_code) == (503, 503, 200)
    assert "retry-after" in answer.headers
    assert ShuttingDown.default_message in answer.text
    assert shape is NATIVE or answer.json()["error"]["code"] == "shutting_down"
    await idle(world)
    assert len(await world.ledger()) == world.sim.started == admitted > 0


async def test_a_draining_worker_still_refuses_a_bad_key_as_ever(world):
    """Who has no key does not learn that the server is stopping."""
    world.app.begin_drain()
    answer = await world.client.post(OPENAI.path, json=OPENAI.body())
    assert answer.status_code == 401


@each_shape
async def test_a_call_in_flight_finishes_within_the_drain_time(world, shape):
    """Begun before the drain, ended by itself: completed, as if nothing were the matter."""
    world.sim.play(Script(tokens=4, token_gap=0.05))
    async with calling(world, shape) as caller:
        await dispatched(world)
        world.app.begin_drain()
        await caller.until({NATIVE: b'"done":true', OPENAI: b"[DONE]", WHOLE: b'"usage"'}[shape])
        row = await ended(world)
    assert (row["outcome"], row["basis"], row["completion_tokens"]) == ("completed", "final", 4)


@each_shape
async def test_a_call_that_outlasts_the_drain_time_is_cut(database, redis_url, shape):
    """After DRAIN_TIMEOUT: upstream closed, the error said last, outcome drained."""
    async with open_world(database, redis_url, drain_timeout=0.2) as world:
        world.sim.play(SLOW)
        live = world.gateway.gate.quota.live
        async with calling(world, shape) as caller:
            await until(lambda: [hold.output for hold in live.values()] == [1])
            began = time.monotonic()
            world.app.begin_drain()
            await caller.until(ShuttingDown.default_message.encode())
            row = await ended(world)
    assert world.sim.generations[0].ended_at - began >= 0.2
    assert world.sim.generations[0].end == "disconnected"
    assert b"[DONE]" not in caller.received
    assert (row["outcome"], row["basis"], row["completion_tokens"]) == ("drained", "partial", 1)
    assert caller.status == row["status_code"] == (200 if shape.stream else 503)


@each_shape
async def test_a_hastened_drain_cuts_at_once(world, shape):
    """Nobody waits for the drain time: calls that load, stream and queue all end."""
    world.sim.play(Script(head_delay=60))
    async with calling(world, shape) as caller:
        await dispatched(world)
        world.app.begin_drain()
        world.app.hasten_drain()
        await until(lambda: not world.sim.open, SOON)
        await caller.until(ShuttingDown.default_message.encode())
        row = await ended(world)
    assert (row["outcome"], row["basis"]) == ("drained", "estimated")
    assert caller.status == row["status_code"] == 503


async def test_a_hastened_drain_cuts_what_waits_or_still_arrives(database, redis_url):
    """A queued call is drained at no cost, a half-sent one gets 503 and no row."""
    async with open_world(database, redis_url, backend_slots=1) as world:
        world.sim.play(SLOW)
        async with (
            calling(world, NATIVE) as first,
            connected(world) as queued,
            connected(world) as half,
        ):
            await first.until(b"t0")
            await queued.stream.send_all(request(world, OPENAI.path, OPENAI.body()))
            await until(lambda: world.gateway.gate.backends.waiting == 1)
            await half.stream.send_all(request(world, OPENAI.path, OPENAI.body(), length=9999))
            await until(lambda: len(world.gateway.live) == 3)
            world.app.hasten_drain()
            for caller in (queued, half):
                await caller.until(b"shutting_down")
                assert caller.status == 503
        await idle(world)
        rows = await world.ledger()
    assert [(row["outcome"], row["basis"]) for row in rows] == [
        ("drained", "partial"),
        ("drained", "none"),
    ]


async def test_a_second_drain_changes_nothing(database, redis_url):
    """Beginning again neither restarts the clock nor cuts."""
    async with open_world(database, redis_url, drain_timeout=0.3) as world:
        world.sim.play(SLOW)
        async with calling(world, OPENAI) as caller:
            await caller.until(b"t0")
            began = time.monotonic()
            for _ in range(3):
                world.app.begin_drain()
                await trio.lowlevel.checkpoint()
            await until(lambda: not world.sim.open)
            assert 0.3 <= world.sim.generations[0].ended_at - began < 0.3 + LATE
