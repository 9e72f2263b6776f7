"""The group commit: rows that end together are stored together, and none is ever dropped."""

from dataclasses import replace
from typing import Any

import pytest
import trio
import trio.testing

from tests.account import caller, one_database, open_worker, past_row, until
from tests.proxy import open_door
from trio_gateway.services.ledger import writer as writer_module
from trio_gateway.services.ledger.writer import LedgerWriter

NOON = 1_900_000_000_000_000


@pytest.fixture(scope="module")
def books(stores):
    with one_database(stores) as url:
        yield url


@pytest.fixture
async def worker(books, redis_url):
    async with open_worker(books, redis_url) as opened:
        yield opened


class Counted:
    """The ledger, and how many rows each transaction had."""

    def __init__(self, ledger):
        self._ledger = ledger
        self.groups = []
        self.failures = []

    async def write(self, rows):
        self.groups.append(len(rows))
        if self.failures:
            raise self.failures.pop()
        return await self._ledger.write(rows)


async def start(worker, *, others=0, settle=None):
    ledger: Any = Counted(worker.ledger)
    writer = LedgerWriter(ledger, settle or worker.quota.settle, lambda: others)
    await worker.nursery.start(writer.run)
    return writer, ledger


async def test_a_submitted_row_is_stored_and_then_settled(worker):
    """The event is set once both are done, in that order."""
    seen = []

    async def settle(rows):
        seen.extend(await worker.ledger.find([row.request_id for row in rows]))

    writer, _ = await start(worker, settle=settle)
    row = past_row(caller(), 10, NOON)
    await writer.submit(row).wait()
    assert seen == [row.request_id]


async def test_rows_that_come_together_share_a_transaction(worker):
    """One for all that wait, at most a group's worth in each."""
    writer, ledger = await start(worker)
    done = [writer.submit(past_row(caller(), 1, NOON)) for _ in range(450)]
    assert writer.backlog == 450
    for event in done:
        await event.wait()
    assert ledger.groups == [200, 200, 50]
    assert writer.backlog == 0


@pytest.fixture
def clock():
    """Time as it is, that can be made to go by."""
    return trio.testing.MockClock(rate=1.0)


async def test_a_busy_worker_waits_a_moment_for_company(clock, worker, monkeypatch):
    """Rows that come within it share its transaction; an idle worker does not wait."""
    for name in ("LINGER_EACH", "LINGER_MOST"):
        monkeypatch.setattr(writer_module, name, 30.0)
    writer, ledger = await start(worker, others=1)
    first = writer.submit(past_row(caller(), 1, NOON))
    await until(writer._wake.is_set)
    await trio.testing.wait_all_tasks_blocked()
    second = writer.submit(past_row(caller(), 1, NOON))
    clock.jump(30.0)
    await first.wait()
    assert second.is_set()
    assert ledger.groups == [2]


async def test_drained_means_that_every_row_taken_is_done(worker):
    """At once when there is none."""
    writer, _ = await start(worker)
    await writer.drained()
    done = [writer.submit(past_row(caller(), 1, NOON)) for _ in range(3)]
    await writer.drained()
    assert all(event.is_set() for event in done)
    done = writer.submit(past_row(caller(), 1, NOON))
    await writer.drained()
    assert done.is_set()


async def test_rows_wait_for_postgres(books, redis_url, monkeypatch):
    """Nothing taken is dropped, however long it is away; what came meanwhile follows."""
    monkeypatch.setattr(writer_module, "RETRY", 0.02)
    async with open_door(books) as door, open_worker(door.url, redis_url) as worker:
        writer, ledger = await start(worker)
        door.shut()
        rows = [past_row(caller(), 1, NOON) for _ in range(3)]
        first = writer.submit(rows[0])
        await until(lambda: len(ledger.groups) >= 3)
        others = [writer.submit(row) for row in rows[1:]]
        assert (first.is_set(), writer.backlog) == (False, 3)
        door.reopen()
        for event in (first, *others):
            await event.wait()
        assert len(await worker.ledger.find([row.request_id for row in rows])) == 3


async def test_a_row_that_postgres_never_takes_holds_up_nobody(worker):
    """The others of its group are stored; it is settled by, so that its hold does not stay."""
    settled: list[str] = []

    async def settle(rows):
        settled.extend(row.request_id for row in rows)

    writer, _ = await start(worker, settle=settle)
    good = [past_row(caller(), 1, NOON) for _ in range(2)]
    bad = replace(past_row(caller(), 1, NOON), status_code=2**40)
    done = [writer.submit(row) for row in (good[0], bad, good[1])]
    for event in done:
        await event.wait()
    assert settled == [good[0].request_id, bad.request_id, good[1].request_id]
    stored = await worker.ledger.find(settled)
    assert set(stored) == {row.request_id for row in good}


async def test_a_schema_that_is_missing_costs_no_row(worker, monkeypatch):
    """As after a restore that went wrong: rows wait for it, and no account is closed meanwhile."""
    monkeypatch.setattr(writer_module, "RETRY", 0.02)
    settled: list[str] = []

    async def settle(rows):
        settled.extend(row.request_id for row in rows)

    writer, ledger = await start(worker, settle=settle)
    row = past_row(caller(), 1, NOON)
    await worker.postgres.fetch("ALTER SCHEMA gateway RENAME TO away")
    try:
        done = writer.submit(row)
        await until(lambda: len(ledger.groups) >= 3)
        assert (done.is_set(), settled, writer.backlog) == (False, [], 1)
    finally:
        await worker.postgres.fetch("ALTER SCHEMA away RENAME TO gateway")
    await done.wait()
    assert set(await worker.ledger.find([row.request_id])) == {row.request_id}


async def test_a_failure_that_nobody_foresaw_costs_no_row(worker, monkeypatch):
    """A bug of ours is no reason to forget a charge: it is tried again, and stored."""
    monkeypatch.setattr(writer_module, "RETRY", 0.02)
    writer, ledger = await start(worker)
    ledger.failures = [RuntimeError("a bug"), RuntimeError("a bug")]
    row = past_row(caller(), 1, NOON)
    await writer.submit(row).wait()
    assert ledger.groups == [1, 1, 1]
    assert set(await worker.ledger.find([row.request_id])) == {row.request_id}


async def test_how_long_the_oldest_row_waits_is_known(clock, worker):
    """From when it was taken until it is settled; nothing waits where there is no row."""
    settling, go_on = trio.Event(), trio.Event()

    async def settle(_):
        settling.set()
        await go_on.wait()

    writer, _ = await start(worker, settle=settle)
    assert writer.waited == 0
    first = writer.submit(past_row(caller(), 1, NOON))
    await settling.wait()
    clock.jump(40.0)
    second = writer.submit(past_row(caller(), 1, NOON))
    assert (writer.waited >= 40, writer.backlog) == (True, 2)
    go_on.set()
    await first.wait()
    await second.wait()
    await writer.drained()
    assert (writer.waited, writer.backlog) == (0, 0)
