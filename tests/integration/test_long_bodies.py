"""Long bodies are read one after the other, beside everything else."""

from __future__ import annotations

import pytest
import trio
import trio.testing

from tests.integration.batching import MODEL, ask, batcher, hurried
from trio_gateway.pipeline.reading import SEATS, SHORT
from trio_gateway.simulator.script import Script
from trio_gateway.web import inference

CHAT = "/v1/chat/completions"
LONG = "word " * SHORT


def body(content: str = "hi", **fields: object) -> dict[str, object]:
    return {"model": MODEL, "messages": [{"role": "user", "content": content}]} | fields


@pytest.mark.parametrize("path", [CHAT, "/api/chat"])
async def test_a_long_body_is_read_to_its_last_word(world, path):
    """Its prompt arrives upstream as it was sent."""
    answer = await world.post(path, body(LONG + "end", stream=False))
    assert answer.status_code == 200
    (sent,) = world.sim.generations
    assert sent.body["messages"] == body(LONG + "end")["messages"]


async def test_short_calls_do_not_wait_for_long_bodies(world):
    """While one is being read another waits, and whoever sends little is served."""
    answers: list[int] = []

    async def send_long() -> None:
        answers.append((await world.post(CHAT, body(LONG))).status_code)

    with trio.fail_after(60):
        async with trio.open_nursery() as nursery, SEATS:
            nursery.start_soon(send_long)
            await waiting()
            assert (await world.post(CHAT, body())).status_code == 200
            assert answers == []
    assert answers == [200]


async def test_a_long_body_does_not_wait_for_ever(world, monkeypatch):
    """The caller is told to try again, and nothing was sent or charged."""
    monkeypatch.setattr(inference, "READING_LIMIT", 0.1)
    async with SEATS:
        answer = await world.post(CHAT, body(LONG))
    assert answer.status_code == 503
    assert answer.json()["error"]["code"] == "overloaded"
    assert await world.ledger() == []


async def test_a_revoked_key_ends_the_wait_of_its_body(world):
    """A call can be cut from the step that proved its key on."""
    answers: list[int] = []

    async def send_long() -> None:
        answers.append((await world.post(CHAT, body(LONG))).status_code)

    with trio.fail_after(60):
        async with SEATS, trio.open_nursery() as nursery:
            nursery.start_soon(send_long)
            await waiting()
            await world.keyring.revoke(world.key["id"])
    assert answers == [401]


async def test_a_question_about_a_model_is_never_long(world):
    """What names a model is short, and is read at once."""
    answer = await world.post("/api/show", {"model": MODEL, "system": LONG})
    assert answer.status_code == 413
    assert (await world.post("/api/show", {"model": MODEL, "system": "short"})).status_code == 200


async def test_long_lines_of_batches_are_read_beside_calls(world):
    """A line waits for its turn as a body does, and calls go on."""
    world.sim.play(Script(tokens=1))
    owner = batcher(world)
    line = ask("c1")
    line["body"]["messages"][0]["content"] = LONG
    with trio.fail_after(120):
        async with SEATS:
            batch_id = await owner.begin([line])
            await waiting()
            assert (await world.post(CHAT, body())).status_code == 200
        found = await hurried(world, owner, batch_id)
    assert list(found.output) == ["c1"]


async def waiting() -> None:
    """Wait until somebody waits for a seat."""
    while not SEATS.statistics().tasks_waiting:  # noqa: ASYNC110 - a limiter tells nobody
        await trio.sleep(0.01)
