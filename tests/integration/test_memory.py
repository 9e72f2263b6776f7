"""What an ended call leaves behind: nothing that waits for the collector."""

from __future__ import annotations

import gc
from collections import Counter

import pytest
import trio

from tests.integration.batching import MODEL, ask, batcher, hurried
from trio_gateway.core.domain import Call
from trio_gateway.core.errors import GatewayError
from trio_gateway.pipeline.reading import SHORT
from trio_gateway.simulator.script import Script

CALLS = 5
CHAT = "/v1/chat/completions"


@pytest.fixture
def uncollected():
    """Let nothing but reference counts free what calls leave behind."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def kept() -> Counter[str]:
    """Count the errors and calls that are still there."""
    return Counter(
        type(found).__name__
        for found in gc.get_objects()
        if isinstance(found, (Call, GatewayError)) and not isinstance(found, type)
    )


def body(model: str = MODEL, **fields: object) -> dict[str, object]:
    return {"model": model, "messages": [{"role": "user", "content": "hi"}]} | fields


@pytest.mark.parametrize(
    ("script", "wanted", "status"),
    [
        (Script(), body("nope"), 403),
        (Script(), body(messages=[]), 400),
        (Script(), body(messages=[], metadata={"long": "x" * SHORT}), 400),
        (Script(), body(metadata={"long": "x" * SHORT}), 200),
        (Script(status=500), body(), 502),
        (Script(status=503), body(), 503),
        (Script(ending="die", after=1), body(), 502),
        (Script(ending="die", after=1), body(stream=True), 200),
        (Script(tokens=3), body(), 200),
    ],
)
async def test_a_call_that_ended_is_gone(world, uncollected, script, wanted, status):
    """However it ended, neither it nor its error stays in memory, and its body with them."""
    world.sim.play(script)
    before = kept()
    for _ in range(CALLS):
        assert (await world.post(CHAT, wanted)).status_code == status
    await world.settled()
    await trio.testing.wait_all_tasks_blocked(0.05)
    assert sum((kept() - before).values()) <= 1  # the last one may still be on its way


async def test_calls_that_were_cut_are_gone(world, uncollected):
    """A leash keeps neither the error nor the call that was cut."""
    world.sim.play(Script(tokens=5, token_gap=60))
    before = kept()
    async with trio.open_nursery() as nursery:
        for _ in range(CALLS):
            nursery.start_soon(world.post, CHAT, body())
        while world.sim.started < CALLS:  # noqa: ASYNC110 - the server's own count
            await trio.sleep(0.01)
        await world.keyring.revoke(world.key["id"])
    await world.settled()
    await trio.testing.wait_all_tasks_blocked(0.05)
    assert sum((kept() - before).values()) <= 1


async def test_a_download_that_failed_is_gone(world, uncollected):
    """Its error keeps nothing of the request either."""
    owner = batcher(world)
    path = f"/v1/files/{await owner.upload(b'{}')}/content"
    for blob in [found for found in world.blobs.rglob("*") if found.is_file()]:
        blob.unlink()
    before = kept()
    for _ in range(CALLS):
        assert (await world.get(path)).status_code == 503
    await trio.testing.wait_all_tasks_blocked(0.05)
    assert sum((kept() - before).values()) <= 1


async def test_lines_that_failed_are_gone(world, uncollected):
    """A batch leaves no call and no error behind, however its lines ended."""
    world.sim.play(Script(status=500))
    owner = batcher(world)
    before = kept()
    with trio.fail_after(120):
        batch_id = await owner.begin([ask(f"c{number}") for number in range(CALLS)])
        found = await hurried(world, owner, batch_id)
    assert found.codes() == {"upstream_error": CALLS}
    await world.settled()
    await trio.testing.wait_all_tasks_blocked(0.05)
    assert sum((kept() - before).values()) <= 1
