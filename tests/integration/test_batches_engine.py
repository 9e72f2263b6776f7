"""The engine under everything that goes wrong: a line is retried, given up or left to another.

Upstream is a simulated Ollama that misbehaves on demand; where something has to wait for its
time, `time_passes` lets that time be over.
"""

from __future__ import annotations

import contextlib
import itertools
import shutil
import socket
from collections import Counter
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest
import trio

from tests.integration.batching import (
    MODEL,
    TERMINAL,
    ask,
    asks,
    batcher,
    booked,
    hurried,
    jsonl,
    seen,
    time_passes,
    window_ends,
)
from tests.integration.caller import NATIVE, SOON, calling, locked, until, until_rows
from tests.proxy import open_door
from tests.world import MODELS, open_world
from trio_gateway.clients.transport import LeanTransport
from trio_gateway.simulator.app import create_app
from trio_gateway.simulator.script import Script

LIMIT = 180.0  # seconds for a whole test
HELD = Script(tokens=9, token_gap=60)  # an answer that never comes to its end
GATED = Script(tokens=3, held=True)  # one that ends when the test lets it
OTHER_MODEL = "qwen3:8b"
TRIED = "SELECT FROM gateway.batch_lines WHERE attempts = $1"
QUEUED = "SELECT FROM gateway.batch_lines WHERE attempts = $1 AND state = 'queued'"
LEASED = "SELECT FROM gateway.batch_lines WHERE state = 'leased'"
PUT_BACK = f"SELECT WHERE NOT EXISTS ({LEASED})"
ROWS = "SELECT FROM gateway.ledger WHERE batch_id IS NOT NULL OFFSET $1"
TAKEN_OVER = """
UPDATE gateway.batch_lines SET lease_token = gen_random_uuid(),
    lease_until = now() + interval '1 hour' WHERE state = 'leased'
"""
LAST_LEASE_ENDS = """
UPDATE gateway.batch_lines SET attempts = 5, lease_until = now() - interval '1 ms'
WHERE state = 'leased'
"""
RESTING = "SELECT FROM gateway.batches WHERE resume_at > now()"
OVER = f"SELECT FROM gateway.batches WHERE status IN {tuple(sorted(TERMINAL))}"
ACTS = {
    "revoked": "INSERT INTO gateway.revocations (key_id) VALUES ($1)",
    "disabled": "UPDATE gateway.api_keys SET disabled_at = now() WHERE id = $1",
    "tenant disabled": "UPDATE gateway.tenants SET disabled_at = now() WHERE id ="
    " (SELECT tenant_id FROM gateway.api_keys WHERE id = $1)",
}


@pytest.fixture(autouse=True)
async def limited():
    with trio.fail_after(LIMIT):
        yield


def outcomes(rows):
    """Count ledger rows by their outcomes."""
    return Counter(row["outcome"] for row in rows)


async def states(world):
    """Count lines by their failed attempts and states."""
    rows = await world.rows("SELECT attempts, state FROM gateway.batch_lines")
    return Counter((row["attempts"], row["state"]) for row in rows)


# Retries


@pytest.mark.parametrize(
    ("script", "outcome", "status"),
    [
        (Script(status=503, times=1), "upstream_error", 503),
        (Script(ending="die", after=1, times=1), "upstream_error", 502),
        (Script(ending="eof", after=1, times=1), "upstream_error", 502),
        (Script(status=500, times=1), "upstream_error", 502),
        (Script(never_answers=True, times=1), "timeout", 504),
    ],
    ids=["busy", "dies", "ends early", "breaks", "is silent"],
)
async def test_a_line_that_fails_upstream_is_tried_again(
    database, redis_url, script, outcome, status
):
    """The failure costs an attempt and a ledger row; the result is that of the second one."""
    limits: Any = {"first_byte_timeout": 2} if script.never_answers else {}
    async with open_world(database, redis_url, **limits) as world:
        world.sim.play(script)
        owner = batcher(world)
        batch_id = await owner.begin([ask("a")])
        await until_rows(world, TRIED, 1)
        found = await hurried(world, owner, batch_id)
        failed, good = await booked(world, batch_id)
        assert len(await world.ledger()) == world.sim.started == 2
    assert (failed["outcome"], failed["status_code"]) == (outcome, status)
    assert (good["outcome"], good["basis"]) == ("completed", "final")
    assert found.output["a"]["response"]["request_id"] == good["request_id"]
    assert found.batch["usage"]["output_tokens"] == good["completion_tokens"]


async def test_a_retry_comes_by_itself(world):
    """Nobody has to help: a second or two later the line has its result."""
    world.sim.play(Script(ending="die", after=0, times=1))
    owner = batcher(world)
    found = await owner.ended(await owner.begin(asks(3)))
    assert found.batch["request_counts"]["completed"] == 3
    assert world.sim.started == 4


@pytest.mark.parametrize(
    ("status", "attempts", "answer", "code"),
    [(503, 3, 503, "upstream_unavailable"), (500, 2, 502, "upstream_error")],
)
async def test_a_line_that_always_fails_is_given_up(
    database, redis_url, status, attempts, answer, code
):
    """Its last error is its result; each dispatch has a row, the other lines are none the worse.

    A busy server is asked BATCH_ATTEMPTS times. One that breaks on the line is asked twice, as
    each time may be charged.
    """
    async with open_world(database, redis_url, batch_attempts=3) as world:
        world.sim.play(Script(model=OTHER_MODEL, status=status))
        owner = batcher(world)
        batch_id = await owner.begin([ask("good"), ask("bad", model=OTHER_MODEL)])
        found = await hurried(world, owner, batch_id)
        rows = await booked(world, batch_id)
    assert found.batch["status"] == "completed"
    bad = [row for row in rows if row["model"] == OTHER_MODEL]
    assert [row["status_code"] for row in bad] == [answer] * attempts
    line = found.errors["bad"]
    assert (line["error"]["code"], line["response"]["status_code"]) == (code, answer)
    assert line["response"]["request_id"] == bad[-1]["request_id"]
    assert set(found.output) == {"good"}


class Detour(LeanTransport):
    """Leads to a port where nobody listens, for as long as `away`; discovery goes on."""

    def __init__(self, port: int) -> None:
        super().__init__()
        self.port = port
        self.away = True

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        if self.away and request.method == "POST":
            request.url = request.url.copy_with(port=self.port)
        return await super().handle_async_request(request)


async def test_refused_connections_use_up_no_attempt(database, redis_url):
    """With one attempt only, a line survives three refusals and then runs."""
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))  # and never listens
        transport = Detour(nobody.getsockname()[1])
        async with open_world(database, redis_url, transport=transport, batch_attempts=1) as world:
            owner = batcher(world)
            batch_id = await owner.begin([ask("a")])
            for refusals in range(3):
                await until_rows(world, ROWS, refusals)
                await until_rows(world, QUEUED, 0)
                await time_passes(world)
            transport.away = False
            found = await hurried(world, owner, batch_id)
            *refused, good = await booked(world, batch_id)
        assert world.sim.started == 1
    assert found.batch["request_counts"] == {"total": 1, "completed": 1, "failed": 0}
    assert len(refused) >= 3
    assert {(row["status_code"], row["charged_tokens"]) for row in refused} == {(503, 0)}
    assert good["outcome"] == "completed"


async def test_what_upstream_calls_wrong_is_final_at_once(world):
    """400 is the caller's own: one dispatch, one error line."""
    world.sim.play(Script(status=400, times=1, error_text="no"))
    owner = batcher(world)
    batch_id = await owner.begin([ask("a")])
    found = await owner.ended(batch_id)
    (row,) = await booked(world, batch_id)
    line = found.errors["a"]
    assert (row["status_code"], world.sim.started) == (400, 1)
    assert (line["response"]["status_code"], line["error"]["code"]) == (400, "invalid_request")
    assert line["response"]["request_id"] == row["request_id"]


# Limits


async def test_a_full_window_is_waited_for(world):
    """No attempt is used, nothing is dispatched or booked meanwhile; then the rest runs."""
    await world.keyring.update(world.key["id"], {"requests_per_minute": 5})
    owner = batcher(world)
    batch_id = await owner.begin(asks(7))
    await until_rows(world, RESTING)
    await until_rows(world, PUT_BACK)
    assert await states(world) == {(0, "succeeded"): 4, (0, "queued"): 3}
    assert (await owner.show(batch_id))["paused"] is None
    assert len(await booked(world, batch_id)) == world.sim.started == 4
    await world.keyring.update(world.key["id"], {"requests_per_minute": 100})
    found = await hurried(world, owner, batch_id)
    assert found.batch["request_counts"] == {"total": 7, "completed": 7, "failed": 0}
    assert len(await booked(world, batch_id)) == world.sim.started == 7


async def spent(world, lines=6):
    """Begin a batch whose budget lasts for some of its lines; return its owner and id."""
    await world.accounts.update("acme", {"budget": 60, "budget_period": "total"})
    owner = batcher(world)
    world.sim.play(GATED)
    batch_id = await owner.begin(asks(lines, max_tokens=16))
    await owner.until(batch_id, lambda batch: batch["paused"] is not None)
    world.sim.play()
    await until_rows(world, PUT_BACK)
    return owner, batch_id


async def test_a_spent_budget_pauses_the_batch_until_it_is_raised(world):
    """`paused` says why; with more budget every line gets its result, and the pause is over."""
    owner, batch_id = await spent(world)
    batch = await owner.show(batch_id)
    assert (batch["status"], batch["paused"]) == ("in_progress", "insufficient_quota")
    assert (batch["errors"], batch["metadata"]) == (None, None)
    assert 0 < batch["request_counts"]["completed"] < 6
    assert batch["request_counts"]["failed"] == 0
    await world.accounts.update("acme", {"budget": 100_000})
    found = await hurried(world, owner, batch_id)
    assert (found.batch["status"], found.batch["paused"]) == ("completed", None)
    assert found.batch["request_counts"] == {"total": 6, "completed": 6, "failed": 0}
    rows = await booked(world, batch_id)
    assert len(rows) == 6, "a refusal has no row"


async def test_a_batch_leaves_room_in_a_window_for_live_calls(world):
    """Lines fill four fifths of it and wait; live calls have the rest, and no more."""
    key = await world.tenant_with_key("tight", {"all_models": True, "requests_per_minute": 10})
    await batcher(world, key).begin(asks(20))
    await until_rows(world, RESTING)
    await until_rows(world, PUT_BACK)
    assert len(await world.rows(ROWS, 0)) == 8
    body = {"model": MODEL, "messages": [{"role": "user", "content": "hi"}]}
    answers = [await world.post("/v1/chat/completions", body, key) for _ in range(3)]
    assert [answer.status_code for answer in answers] == [200, 200, 429]


async def test_a_paused_batch_whose_window_ends_expires(world):
    """What was done is in the output; the rest says `batch_expired`."""
    owner, batch_id = await spent(world)
    await window_ends(world, batch_id)
    found = await owner.ended(batch_id)
    assert (found.batch["status"], found.batch["paused"]) == ("expired", None)
    assert found.output
    assert set(found.codes()) == {"batch_expired"}
    assert all(line["response"] is None for line in found.errors.values())


async def test_a_paused_batch_can_be_cancelled(world):
    """What was done is in the output, and nothing says `paused` any more."""
    owner, batch_id = await spent(world)
    assert (await owner.cancel(batch_id)).json()["paused"] is None
    found = await owner.ended(batch_id)
    assert (found.batch["status"], found.batch["paused"]) == ("cancelled", None)
    assert found.output
    assert set(found.codes()) == {"batch_cancelled"}


# Losses


@pytest.mark.parametrize("store", ["redis", "postgres"])
async def test_a_store_that_is_away_loses_no_line(database, redis_url, store):
    """Lines in flight end and are stored later; what could not be put back comes by its lease."""
    async with contextlib.AsyncExitStack() as stack:
        door = await stack.enter_async_context(
            open_door(redis_url if store == "redis" else database)
        )
        urls = (database, door.url) if store == "redis" else (door.url, redis_url)
        world = await stack.enter_async_context(open_world(*urls, batch_lease=3))
        world.sim.play(Script(tokens=3, token_gap=0.1))
        owner = batcher(world)
        batch_id = await owner.begin(asks(30))
        await until(lambda: world.sim.started >= 6 and world.sim.open)
        door.shut()
        await until(lambda: not world.sim.open)
        assert world.sim.started < 30
        door.reopen()
        found = await owner.ended(batch_id)
        rows = await booked(world, batch_id)
        # a line whose result outlasts its lease, because nobody could store it, runs again
        dispatched = [row for row in rows if row["backend"] is not None]
        assert len(dispatched) == world.sim.started >= 30
    assert found.batch["request_counts"] == {"total": 30, "completed": 30, "failed": 0}


async def test_a_line_whose_workers_keep_dying_is_given_up(world):
    """Each lease that runs out is an attempt; after the last one the line says so."""
    world.sim.play(HELD)
    owner = batcher(world)
    batch_id = await owner.begin([ask("poison")])
    await until(lambda: world.sim.open == 1)
    await world.rows(LAST_LEASE_ENDS)
    await time_passes(world)
    found = await owner.ended(batch_id)
    assert (found.batch["status"], found.codes()) == ("completed", {"batch_failed": 1})
    assert found.errors["poison"]["response"] is None
    await until(lambda: not world.sim.open)


async def test_lines_whose_input_is_lost_say_so(world):
    """A blob store that lost the file ends the batch, it does not hang it."""
    owner, batch_id = await spent(world)
    shutil.rmtree(world.blobs / "files")
    await world.accounts.update("acme", {"budget": 100_000})
    found = await hurried(world, owner, batch_id)
    assert found.batch["status"] == "completed"
    assert found.output
    assert set(found.codes()) == {"batch_failed"}


# Rights that change


async def in_flight(world, lines=10, done=3, held=4, script=HELD, **more):
    """Begin a batch: some lines are done and stored, some are in flight, the rest wait."""
    world.sim.play(Script(times=done), script)
    owner = batcher(world)
    batch_id = await owner.begin(asks(lines, **more))
    await until(lambda: world.sim.started == done + held and world.sim.open == held)
    await owner.until(batch_id, lambda batch: batch["request_counts"]["completed"] == done)
    return owner, batch_id


@pytest.mark.parametrize("act", ACTS.values(), ids=ACTS)
async def test_a_key_taken_away_ends_its_lines(world, act):
    """Those in flight are cut upstream, all that are left say `invalid_api_key`."""
    _, batch_id = await in_flight(world)
    again = await world.keyring.issue("acme", {})
    struck = trio.current_time()
    await world.rows(act, world.key["id"])
    await until(lambda: not world.sim.open)
    assert trio.current_time() - struck < SOON
    await until_rows(world, OVER)
    rows = await booked(world, batch_id)
    assert world.sim.started == len(rows) == 7
    assert outcomes(rows) == {"completed": 3, "revoked": 4}
    await world.accounts.enable("acme")
    found = await batcher(world, again).ended(batch_id)
    assert found.batch["status"] == "completed"
    assert found.batch["request_counts"] == {"total": 10, "completed": 3, "failed": 7}
    assert set(found.codes()) == {"invalid_api_key"}
    assert {line["response"]["status_code"] for line in found.errors.values()} == {401}


async def test_a_key_that_expires_ends_the_lines_that_were_not_begun(world):
    """What is in flight may end."""
    _, batch_id = await in_flight(world, script=GATED)
    again = await world.keyring.issue("acme", {})
    past = datetime.now(UTC) - timedelta(seconds=1)
    await world.keyring.update(world.key["id"], {"expires_at": past})
    while (await world.get("/v1/models")).status_code != 401:
        pass
    world.sim.play()
    found = await batcher(world, again).ended(batch_id)
    assert {row["outcome"] for row in await booked(world, batch_id)} == {"completed"}
    assert len(found.output) >= 7
    assert set(found.codes()) == {"invalid_api_key"}


async def test_a_model_blocked_on_the_way_ends_its_lines(world):
    """What is in flight may end; lines of other models go on."""
    world.sim.play(GATED)
    owner = batcher(world)
    lines = asks(8) + asks(8, "other", model=OTHER_MODEL)
    batch_id = await owner.begin(lines)
    await until(lambda: world.sim.open == 4)
    first = world.sim.generations[0].body["model"]
    blocked = "llama3.2:latest" if first.startswith("llama") else OTHER_MODEL
    await world.models.set(blocked, {"blocked": True}, "model.block")
    while f'"{blocked}"' in (await world.get("/v1/models")).text:
        pass
    world.sim.play()
    found = await owner.ended(batch_id)
    assert found.batch["status"] == "completed"
    assert len(found.output) >= 4
    assert set(found.codes()) == {"model_not_found"}
    bodies = {line["custom_id"]: line["body"]["model"] for line in lines}
    assert {bodies[custom_id] for custom_id in found.errors} == {blocked.removesuffix(":latest")}


# Order


async def test_live_calls_go_before_lines(database, redis_url):
    """With one slot and lines in line for it, live calls that come later are served first."""
    async with (
        open_world(database, redis_url, backend_slots=1) as world,
        contextlib.AsyncExitStack() as stack,
    ):
        world.sim.play(Script(tokens=9, token_gap=60, times=1))
        first = await stack.enter_async_context(calling(world, NATIVE))
        await first.until(b"t0")
        owner = batcher(world)
        batch_id = await owner.begin(asks(6))
        backends = world.gateway.gate.backends
        await until(lambda: backends.waiting == 4)
        live = []
        for number in range(2):
            said = [{"role": "user", "content": f"live{number}"}]
            live.append(await stack.enter_async_context(calling(world, NATIVE, messages=said)))
            await until(lambda: backends.waiting == 5 + number)  # noqa: B023 - over before the next
        first.reset()
        found = await owner.ended(batch_id)
        assert seen(world)[1:3] == ["live0", "live1"]
        assert sorted(seen(world)[3:]) == [f"c{number}" for number in range(6)]
        assert found.batch["request_counts"]["completed"] == 6
        assert outcomes(await booked(world, batch_id)) == {"completed": 6}


async def test_tenants_share_the_lines_fairly(world):
    """A long batch that came first does not keep another tenant's waiting till its end."""
    world.sim.play(Script(tokens=3, token_gap=0.015))
    mine, theirs = batcher(world), batcher(world, await world.tenant_with_key("other"))
    first = await mine.begin(asks(60, "a"))
    await world.rows("UPDATE gateway.batches SET resume_at = now() + interval '1 hour'")
    second = await theirs.begin(asks(60, "b"))
    await until(lambda: "b0" in seen(world))
    await time_passes(world)
    for owner, batch_id in ((mine, first), (theirs, second)):
        assert (await owner.ended(batch_id)).batch["request_counts"]["completed"] == 60
    order = [text[0] for text in seen(world)]
    ended_first = min(len(order) - order[::-1].index(each) for each in "ab")
    both = order[order.index("b") : ended_first]
    assert min(both.count("a"), both.count("b")) >= 15, order


async def test_lines_of_one_model_run_together(world):
    """However they are mixed in the file: upstream is not made to load one after the other."""
    owner = batcher(world)
    mixed = [ask(f"c{number}", model=OTHER_MODEL if number % 2 else MODEL) for number in range(40)]
    found = await owner.ended(await owner.begin(mixed))
    assert found.batch["request_counts"]["completed"] == 40
    assert found.batch["model"] is None
    assert list(found.output) == [f"c{number}" for number in range(40)]
    models = [generation.model for generation in world.sim.generations]
    changes = sum(one != next_ for one, next_ in itertools.pairwise(models))
    assert changes <= 8, models


# Cancel


@contextlib.asynccontextmanager
async def blind_world(database, redis_url):
    """Open a world whose catalog is unknown until its simulator plays something else."""
    simulator = create_app(MODELS)
    simulator.sim.play(Script(path="/api/tags", status=500))
    async with open_world(
        database, redis_url, simulator=simulator, discovery_interval=0.1
    ) as world:
        yield world


async def test_validation_waits_while_the_catalog_is_unknown(database, redis_url):
    """A model that nobody can see may be there: nothing is judged until it is known."""
    async with blind_world(database, redis_url) as world:
        owner = batcher(world)
        batch_id = await owner.begin([ask("a")])
        looks = world.sim.requests["/api/tags"]
        await until(lambda: world.sim.requests["/api/tags"] > looks + 3)
        batch = await owner.show(batch_id)
        assert (batch["status"], batch["errors"]) == ("validating", None)
        world.sim.play()
        found = await owner.ended(batch_id)
    assert found.batch["request_counts"] == {"total": 1, "completed": 1, "failed": 0}


async def test_a_cancel_while_validating_leaves_nothing(database, redis_url):
    """No line, no file, no count."""
    async with blind_world(database, redis_url) as world:
        owner = batcher(world)
        batch_id = await owner.begin([ask("a")])
        answer = await owner.cancel(batch_id)
        assert answer.status_code == 200
        assert answer.json()["status"] in {"cancelling", "cancelled"}
        found = await owner.ended(batch_id)
        assert not world.sim.started
    assert found.batch["status"] == "cancelled"
    assert found.batch["request_counts"] == {"total": 0, "completed": 0, "failed": 0}
    assert (found.batch["in_progress_at"], found.batch["errors"]) == (None, None)


async def test_a_cancel_in_progress_stops_upstream_and_keeps_what_is_done(world):
    """In-flight lines are aborted at once; three kinds of lines, each where it belongs."""
    owner, batch_id = await in_flight(world)
    asked = trio.current_time()
    answer = await owner.cancel(batch_id)
    assert (answer.status_code, answer.json()["status"]) == (200, "cancelling")
    await until(lambda: not world.sim.open)
    assert trio.current_time() - asked < SOON
    found = await owner.ended(batch_id)
    assert found.batch["status"] == "cancelled"
    assert found.batch["request_counts"] == {"total": 10, "completed": 3, "failed": 7}
    assert found.codes() == {"batch_cancelled": 7}
    rows = await booked(world, batch_id)
    assert outcomes(rows) == {"completed": 3, "aborted": 4}
    assert world.sim.started == 7
    done = {line["response"]["request_id"] for line in found.output.values()}
    assert done == {row["request_id"] for row in rows if row["outcome"] == "completed"}


async def test_a_cancel_while_finalizing_wins_and_a_second_one_changes_nothing(world):
    """The files are not written yet: all lines are in the output of a cancelled batch."""
    owner = batcher(world)
    file_id = await owner.upload(jsonl(asks(3)))
    async with locked(world, "gateway.doomed_blobs"):
        batch_id = (await owner.create(file_id))["id"]
        await owner.until(batch_id, lambda batch: batch["status"] == "finalizing")
        first = (await owner.cancel(batch_id)).json()
        second = (await owner.cancel(batch_id)).json()
        assert (first["status"], second["status"]) == ("cancelling", "cancelling")
        assert first["cancelling_at"] == second["cancelling_at"]
        assert first["finalizing_at"] is not None
    found = await owner.ended(batch_id)
    assert found.batch["status"] == "cancelled"
    assert found.batch["request_counts"] == {"total": 3, "completed": 3, "failed": 0}
    again = await owner.cancel(batch_id)
    assert (again.status_code, again.json()) == (200, found.batch)
    stored = await owner.client.get("/v1/files?purpose=batch_output", headers=owner.headers)
    assert [file["id"] for file in stored.json()["data"]] == [found.batch["output_file_id"]]


@pytest.mark.parametrize("status", ["completed", "failed", "expired"])
async def test_a_cancel_after_the_end_is_a_conflict(world, status):
    """409, not to be retried, and the batch stays as it is."""
    owner = batcher(world)
    if status == "expired":
        world.sim.play(HELD)
    batch_id = await owner.begin([ask("a", stream=status == "failed")])
    if status == "expired":
        await until(lambda: world.sim.open == 1)
        await window_ends(world, batch_id)
        world.gateway.live.cut(world.gateway.live.keys(), RuntimeError)
    batch = (await owner.ended(batch_id)).batch if status != "failed" else None
    batch = batch or await owner.until(batch_id)
    assert batch["status"] == status
    answer = await owner.cancel(batch_id)
    assert answer.status_code == 409
    assert answer.headers["x-should-retry"] == "false"
    assert f"with status '{status}'" in answer.json()["error"]["message"]
    assert await owner.show(batch_id) == batch


# Expiry, deletion


async def test_a_window_that_ends_lets_lines_in_flight_end(world):
    """Finished and in-flight lines are in the output, the others say `batch_expired`."""
    owner, batch_id = await in_flight(world, script=GATED)
    await window_ends(world, batch_id)
    leases = world.gateway.engine._dispatcher.leases
    await until(lambda: all(held.stopped for held in leases._held.values()))  # it has been heard of
    world.sim.play()
    found = await owner.ended(batch_id)
    assert found.batch["status"] == "expired"
    assert found.batch["request_counts"] == {"total": 10, "completed": 7, "failed": 3}
    assert found.codes() == {"batch_expired": 3}
    rows = await booked(world, batch_id)
    assert outcomes(rows) == {"completed": 7}


async def test_a_window_that_ends_before_validation_expires_the_batch(database, redis_url):
    """Nothing was ever run: no counts and no files."""
    async with blind_world(database, redis_url) as world:
        owner = batcher(world)
        batch_id = await owner.begin([ask("a")])
        await window_ends(world, batch_id)
        found = await owner.ended(batch_id)
    assert found.batch["status"] == "expired"
    assert found.batch["request_counts"] == {"total": 0, "completed": 0, "failed": 0}


async def test_the_input_may_be_deleted_while_its_lines_run(world):
    """The file is gone for its owner; the batch reads on from it."""
    world.sim.play(Script(tokens=3, token_gap=0.02))
    owner = batcher(world)
    file_id = await owner.upload(jsonl(asks(40)))
    batch_id = (await owner.create(file_id))["id"]
    await until(lambda: world.sim.started >= 4)
    path = f"/v1/files/{file_id}"
    deleted = await owner.client.delete(path, headers=owner.headers)
    assert (deleted.status_code, deleted.json()["deleted"]) == (200, True)
    assert (await owner.client.get(path, headers=owner.headers)).status_code == 404
    found = await owner.ended(batch_id)
    assert found.batch["request_counts"] == {"total": 40, "completed": 40, "failed": 0}


# Drain


async def test_a_drained_worker_leaves_its_lines_to_another(database, redis_url):
    """Lines in flight end, the others are put back; no status changes, nothing runs twice."""
    async with open_world(database, redis_url) as world:
        owner, batch_id = await in_flight(world, 12, script=GATED)
        world.app.begin_drain()
        world.sim.play()
        await world.gateway.engine.stopped.wait()
        assert not await world.rows(LEASED)
        assert await states(world) == {(0, "succeeded"): 7, (0, "queued"): 5}
        (row,) = await world.rows("SELECT status, paused, resume_at FROM gateway.batches")
        assert tuple(row.values()) == ("in_progress", None, None)
        async with open_world(database, redis_url, beside=world) as second:
            found = await batcher(second).ended(batch_id)
            rows = await booked(second, batch_id)
            assert second.sim.started == 5
    assert owner.headers
    assert found.batch["request_counts"] == {"total": 12, "completed": 12, "failed": 0}
    assert outcomes(rows) == {"completed": 12}


async def test_a_hastened_drain_puts_lines_in_flight_back_as_well(database, redis_url):
    """Cut upstream and booked as drained; another worker runs them, and no attempt is used up."""
    async with open_world(database, redis_url, batch_attempts=1) as world:
        _, batch_id = await in_flight(world, 8)
        world.app.hasten_drain()
        await until(lambda: not world.sim.open, SOON)
        await world.gateway.engine.stopped.wait()
        assert len(await world.rows(QUEUED, 0)) == 5
        async with open_world(database, redis_url, beside=world, batch_attempts=1) as second:
            found = await batcher(second).ended(batch_id)
            rows = await booked(second, batch_id)
    assert found.batch["request_counts"] == {"total": 8, "completed": 8, "failed": 0}
    assert outcomes(rows) == {"completed": 8, "drained": 4}


async def test_lines_that_became_anothers_are_left_alone(database, redis_url):
    """A worker that stood still too long drops what it holds: in flight or not, done nothing."""
    async with open_world(database, redis_url, batch_lease=3) as world:
        owner, batch_id = await in_flight(world)
        world.sim.play()
        await world.rows(TAKEN_OVER)
        await until(lambda: not world.sim.open)
        theirs = batcher(world, await world.tenant_with_key("other"))
        await theirs.ended(await theirs.begin(asks(3, "other")))
        assert world.sim.started == 7 + 3
        batch = await owner.show(batch_id)
        assert (batch["status"], batch["request_counts"]["completed"]) == ("in_progress", 3)
        rows = await booked(world, batch_id)
    assert outcomes(rows) == {"completed": 3, "aborted": 4}


async def test_two_workers_share_one_batch(database, redis_url):
    """Both run lines of it, no line twice; either shows the whole."""
    async with (
        open_world(database, redis_url) as world,
        open_world(database, redis_url, beside=world) as second,
    ):
        for each in (world, second):
            each.sim.play(Script(tokens=3, token_gap=0.05))
        owner = batcher(world)
        batch_id = await owner.begin(asks(60))
        found = await batcher(second).ended(batch_id)
        assert world.sim.started > 0
        assert second.sim.started > 0
        assert sorted(seen(world) + seen(second)) == sorted(f"c{n}" for n in range(60))
        assert len(await booked(world, batch_id)) == 60
    assert found.batch["request_counts"]["completed"] == 60
