"""The line in front of the GPU, seen by those who stand in it."""

from __future__ import annotations

import contextlib

import trio

from tests.integration.caller import NATIVE, OPENAI, PATIENCE, calling, idle, until
from tests.world import open_world
from trio_gateway.simulator.script import Script

BLOCKER = Script(tokens=9, token_gap=60, times=1)


def order(world):
    """Return what was asked of upstream, in order, without the call that blocked the way."""
    bodies = [generation.body for generation in world.sim.generations]
    return [body["messages"][0]["content"] for body in bodies][1:]


async def in_line(world, stack, who, key, place):
    """Put one call in line and wait until it stands there; return its caller."""
    messages = [{"role": "user", "content": who}]
    caller = await stack.enter_async_context(calling(world, NATIVE, key=key, messages=messages))
    await until(lambda: world.gateway.gate.backends.waiting == place)
    return caller


async def served(world, first, callers):
    """Let the line move, and wait until everybody has been served."""
    first.reset()
    for caller in callers:
        await caller.until(b'"done":true')
    await idle(world)


async def test_tenants_take_turns(database, redis_url):
    """Three calls of one tenant do not delay the other's three: they alternate."""
    async with (
        open_world(database, redis_url, backend_slots=1) as world,
        contextlib.AsyncExitStack() as stack,
    ):
        other = await world.tenant_with_key("other")
        world.sim.play(BLOCKER)
        first = await stack.enter_async_context(calling(world, NATIVE))
        await first.until(b"t0")
        crowd = [("a", world.key)] * 3 + [("b", other)] * 3
        callers = [
            await in_line(world, stack, who, key, place + 1)
            for place, (who, key) in enumerate(crowd)
        ]
        await served(world, first, callers)
        assert order(world) == ["a", "b", "a", "b", "a", "b"]
        assert world.sim.max_open == 1


async def test_a_weightier_tenant_takes_more_turns(database, redis_url):
    """A share of two is two calls for the neighbor's one."""
    async with (
        open_world(database, redis_url, backend_slots=1) as world,
        contextlib.AsyncExitStack() as stack,
    ):
        heavy = await world.tenant_with_key("heavy", {"all_models": True, "weight_share": 2})
        world.sim.play(BLOCKER)
        first = await stack.enter_async_context(calling(world, NATIVE))
        await first.until(b"t0")
        crowd = [("light", world.key)] * 2 + [("heavy", heavy)] * 4
        callers = [
            await in_line(world, stack, who, key, place + 1)
            for place, (who, key) in enumerate(crowd)
        ]
        await served(world, first, callers)
        assert order(world) == ["light", "heavy", "heavy", "light", "heavy", "heavy"]


async def test_the_line_has_an_end(database, redis_url):
    """With QUEUE_LIMIT calls waiting the next is refused; those in line are served."""
    async with (
        open_world(database, redis_url, backend_slots=1, queue_limit=2) as world,
        contextlib.AsyncExitStack() as stack,
    ):
        world.sim.play(BLOCKER)
        first = await stack.enter_async_context(calling(world, NATIVE))
        await first.until(b"t0")
        callers = [await in_line(world, stack, "a", None, place) for place in (1, 2)]
        answer = await world.post(OPENAI.path, OPENAI.body())
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "overloaded")
        assert int(answer.headers["retry-after"]) >= 1
        await served(world, first, callers)
        outcomes = sorted(row["outcome"] for row in await world.ledger())
        assert outcomes == ["aborted", "completed", "completed", "refused"]


async def test_slots_are_what_upstream_sees_at_once(database, redis_url):
    """With BACKEND_SLOTS=2 ten calls never are three upstream."""
    async with open_world(database, redis_url, backend_slots=2) as world:
        world.sim.play(Script(tokens=3, token_gap=0.005))
        answers = []

        async def call():
            answers.append(await world.post(NATIVE.path, NATIVE.body()))

        with trio.fail_after(PATIENCE):
            async with trio.open_nursery() as nursery:
                for _ in range(10):
                    nursery.start_soon(call)
        await idle(world)
        assert [answer.status_code for answer in answers] == [200] * 10
        assert (world.sim.max_open, world.sim.started) == (2, 10)


async def test_a_tenant_has_so_many_calls_in_flight(database, redis_url):
    """TENANT_IN_FLIGHT: one more is 429 with Retry-After, also while queued; others may call."""
    async with open_world(database, redis_url, tenant_in_flight=1) as world:
        other = await world.tenant_with_key("other")
        world.sim.play(BLOCKER)
        async with calling(world, NATIVE) as first:
            await first.until(b"t0")
            answer = await world.post(OPENAI.path, OPENAI.body())
            neighbor = await world.post(OPENAI.path, OPENAI.body(), other)
        await idle(world)
        again = await world.post(OPENAI.path, OPENAI.body())
        rows = await world.ledger()
    assert (answer.status_code, answer.json()["error"]["code"]) == (429, "rate_limit_exceeded")
    assert int(answer.headers["retry-after"]) >= 1
    assert (neighbor.status_code, again.status_code) == (200, 200)
    assert len(rows) == 3, "a refusal before admission has no row"
