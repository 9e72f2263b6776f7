"""A long batch on three worker processes, while everything around it dies and comes back."""

from __future__ import annotations

import contextlib
import os
import signal
from typing import TYPE_CHECKING, Any

import httpx
import pytest
import trio

from tests.account import empty
from tests.integration import fleet as fleets
from tests.integration.batching import TERMINAL, Batcher, ask, asks
from tests.integration.calls import books_agree, command, office
from tests.integration.fleet import until
from trio_gateway.embedded import stores as embedded
from trio_gateway.migrate import upgrade

if TYPE_CHECKING:
    from collections.abc import Iterator

LINES = 2000
HELD = 3  # of them, which cannot end before the faults are over
HELD_MODEL = "qwen3:8b"
LEASE = 2.0  # seconds, for lines and holds alike
LIMIT = 400.0  # seconds; a twentieth of it where nobody else builds
POLL = 0.1  # seconds
LOST = "SELECT FROM gateway.ledger WHERE outcome = 'lost'"
# A row that a sweep wrote does not know which backend it was.
DISPATCHES = """
SELECT count(*) FILTER (
        WHERE backend IS NOT NULL OR (outcome = 'lost' AND basis <> 'none')) AS dispatched,
    count(*) FILTER (WHERE outcome <> 'completed' AND basis = 'estimated') AS unanswered,
    count(DISTINCT request_id) AS ids, count(*) AS rows,
    count(*) FILTER (WHERE outcome = 'completed') AS completed,
    count(*) FILTER (WHERE outcome = 'lost') AS lost
FROM gateway.ledger WHERE batch_id = $1
"""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Stores of their own, an Ollama and a fleet of three."""
    folder = tmp_path_factory.mktemp("crash")
    with embedded.start(folder / "stores") as stores, fleets.ollama(folder) as sim:
        upgrade(stores.database_url)
        with fleets.fleet(
            "serve",
            folder,
            tuple(stores),
            sim.url,
            workers=3,
            blob_url=(folder / "blobs").as_uri(),
            batch_concurrency=6,
            batch_lease=LEASE,
            hold_lease=LEASE,
            sweep_interval=0.5,
            drain_timeout=2,
            idle_timeout=LIMIT,
        ) as running:
            yield stores, sim, running


class Patient(Batcher):
    """Asks again while stores are away or a worker stands still."""

    async def show(self, batch_id: str) -> dict[str, Any]:
        while True:
            with (
                trio.move_on_after(3),
                contextlib.suppress(httpx.HTTPError, AssertionError),
            ):
                return await super().show(batch_id)
            await trio.sleep(POLL)

    async def done(self, batch_id: str, least: int) -> None:
        """Wait until so many lines have a result."""
        while True:
            batch = await self.show(batch_id)
            assert batch["status"] not in TERMINAL, batch
            if batch["request_counts"]["completed"] >= least:
                return
            await trio.sleep(POLL)


async def test_a_batch_survives_dead_workers_and_stores(site: Any) -> None:
    """2,000 results once each, a ledger row for each dispatch, no hold left, books that agree."""
    stores, sim, running = site
    quick, held = {"token_gap": 0.02, "tokens": 3}, {"tokens": 3, "held": True}
    await sim.play({"model": HELD_MODEL} | held, quick)
    async with office(stores.database_url) as desk:
        key = await desk.key("acme", budget=100_000_000, budget_period="month")
    limits = httpx.Limits(max_keepalive_connections=0)
    with trio.fail_after(LIMIT):
        async with httpx.AsyncClient(
            base_url=running.base_url, timeout=30, limits=limits
        ) as client:
            owner = Patient(client, key)
            lines = [ask(f"c{n}", f"c{n}", model=HELD_MODEL) for n in range(LINES - HELD, LINES)]
            batch_id = await owner.begin(asks(LINES - HELD) + lines)
            await _faults(owner, batch_id, stores, running)
            await sim.play(quick)
            found = await owner.ended(batch_id, LIMIT)
        await books_agree(stores)
        state = await sim.state(open=0)
        async with office(stores.database_url) as desk:
            (booked,) = await desk.postgres.fetch(DISPATCHES, batch_id)
            left = await desk.postgres.fetch("SELECT FROM gateway.batch_lines")
        code, verified = await command(
            "ledger",
            "verify",
            DATABASE_URL=stores.database_url,
            REDIS_URL=stores.redis_url,
        )
    assert found.batch["status"] == "completed"
    assert found.batch["request_counts"] == {"total": LINES, "completed": LINES, "failed": 0}
    assert list(found.output) == [f"c{number}" for number in range(LINES)]
    for custom_id, line in found.output.items():
        assert line["response"]["body"]["choices"][0]["message"]["content"], custom_id
    assert len({line["response"]["request_id"] for line in found.output.values()}) == LINES
    assert not left
    # of a call that upstream had not answered nobody knows whether it came there before its end
    surely = booked["dispatched"] - booked["unanswered"]
    assert surely <= state["started"] <= booked["dispatched"], dict(booked)
    assert booked["ids"] == booked["rows"]
    assert booked["lost"] > 0, "the dead worker had nothing under way"
    assert booked["completed"] >= LINES
    assert (code, verified["ok"], verified["holds_open"]) == (0, True, 0)


async def _faults(owner: Patient, batch_id: str, stores: Any, running: fleets.Fleet) -> None:
    first, second, third = running.workers()
    await owner.done(batch_id, 200)
    os.kill(first, signal.SIGKILL)
    await until(lambda: len(set(running.workers()) - {first}) == 3)
    await owner.done(batch_id, 600)
    os.kill(second, signal.SIGSTOP)
    try:
        await trio.sleep(LEASE * 1.5)  # its leases must run out meanwhile
    finally:
        os.kill(second, signal.SIGCONT)
    await owner.done(batch_id, 800)
    os.kill(third, signal.SIGTERM)
    await until(lambda: third not in running.workers())
    await owner.done(batch_id, 1000)
    stores.postgres.kill()
    stores.postgres.start()
    await owner.done(batch_id, 1400)
    # Redis must not forget the calls of the dead before a sweep has found them.
    async with office(stores.database_url) as desk:
        with trio.fail_after(60):
            while not await desk.postgres.fetch(LOST):  # noqa: ASYNC110 - others write it
                await trio.sleep(POLL)
    empty(stores.redis_url)
