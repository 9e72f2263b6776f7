"""The sweep closes the accounts of calls whose worker is gone, and of no others."""

from typing import Any, ClassVar

import pytest
import trio
from structlog.testing import capture_logs
from trio.testing import MockClock

from tests.account import ask, caller, charged, empty, one_database, open_worker, row_of
from tests.proxy import open_door
from trio_gateway.core.domain import Basis, Limits, Outcome, Period
from trio_gateway.core.errors import StoreUnavailable
from trio_gateway.services.quota.keys import INDEX, tenant_keys
from trio_gateway.services.quota.sweep import Sweeper

TOTAL = Limits(budget=1000, budget_period=Period.TOTAL)
LEASE = 0.25  # seconds


@pytest.fixture(scope="module")
def books(stores):
    with one_database(stores) as url:
        yield url


@pytest.fixture
async def worker(books, redis_url):
    async with open_worker(books, redis_url, lease=LEASE) as opened:
        yield opened


async def abandoned(worker, principal, **wanted):
    """A call whose worker has died."""
    hold, _ = await worker.quota.reserve(ask(principal, 10, 90, **wanted))
    worker.crash(hold)
    return hold


async def sweep_out(worker):
    """Sweep until the leases of the dead are over by both clocks."""
    await trio.sleep(LEASE)
    assert await worker.sweeper.sweep() == 0
    await trio.sleep(LEASE)
    return await worker.sweeper.sweep()


async def test_a_call_that_was_never_dispatched_costs_nothing(worker):
    """Queued when its worker died: `lost`, basis `none`."""
    principal = caller(TOTAL)
    await abandoned(worker, principal, dispatched=False)
    assert await sweep_out(worker) == 1
    (row,) = await worker.rows(principal)
    assert (row["outcome"], row["basis"], row["charged_tokens"]) == ("lost", "none", 0)
    assert (row["prompt_tokens"], row["held_tokens"]) == (0, 100)
    found = await worker.counters(principal)
    assert (found["s|t|total"], found["h|t|total"]) == (0, 0)
    assert await worker.holds(principal) == set()


@pytest.mark.parametrize(("seen", "basis"), [(0, Basis.ESTIMATED), (7, Basis.PARTIAL)])
async def test_a_dispatched_call_pays_for_its_prompt_and_what_was_last_seen(worker, seen, basis):
    """By the counts of its last renewal, at the model's weight."""
    principal = caller(TOTAL)
    hold, _ = await worker.quota.reserve(ask(principal, 10, 90, milli=1500))
    hold.output = seen
    await worker.renewals.beat()
    worker.crash(hold)
    assert await sweep_out(worker) == 1
    (row,) = await worker.rows(principal)
    assert (row["outcome"], row["basis"]) == ("lost", basis)
    assert (row["prompt_tokens"], row["completion_tokens"]) == (10, seen)
    assert row["charged_tokens"] == charged(10, seen, 1500)
    assert (row["endpoint"], row["model"]) == ("/api/chat", "llama3.2:latest")
    found = await worker.counters(principal)
    assert (found["s|t|total"], found["h|t|total"]) == (row["charged_tokens"], 0)


async def test_a_call_that_had_ended_is_written_exactly(worker):
    """Its worker put the final row into the hold before it died."""
    principal = caller(TOTAL)
    hold, _ = await worker.quota.reserve(ask(principal, 10, 90))
    row = row_of(hold, 33, ttft_ms=None, completion_tokens=5, outcome=Outcome.REVOKED)
    hold.phase, hold.final = "final", row
    await worker.renewals.beat()
    worker.crash(hold)
    assert await sweep_out(worker) == 1
    assert (await worker.ledger.find([hold.request_id]))[hold.request_id] == row
    assert (await worker.counters(principal))["s|t|total"] == 33


async def test_an_ended_call_that_postgres_never_takes_stands_in_nobodys_way(worker):
    """The others are written, its account is closed by what it says, and the log has it."""
    principal = caller(TOTAL)
    bad, _ = await worker.quota.reserve(ask(principal, 10, 90))
    good, _ = await worker.quota.reserve(ask(principal, 10, 90))
    for hold, row in ((bad, row_of(bad, 33, status_code=2**40)), (good, row_of(good, 44))):
        hold.phase, hold.final = "final", row
    await worker.renewals.beat()
    for hold in (bad, good):
        worker.crash(hold)
    with capture_logs() as logs:
        assert await sweep_out(worker) == 2
    refused = [each for each in logs if each["event"] == "ledger_row_refused"]
    assert [(each["request_id"], each["charged_tokens"]) for each in refused] == [
        (bad.request_id, 33)
    ]
    assert [row["request_id"] for row in await worker.rows(principal)] == [good.request_id]
    assert await worker.holds(principal) == set()
    assert (await worker.counters(principal))["s|t|total"] == 77


async def test_a_hold_that_cannot_be_read_stands_in_nobodys_way(worker):
    """A later release may know more of a row than this one: that hold is left to its workers."""
    principal = caller(TOTAL)
    strange, _ = await worker.quota.reserve(ask(principal, 10, 90))
    strange.phase, strange.final = "final", row_of(strange, 33)
    await worker.renewals.beat()
    leases = tenant_keys(principal.tenant.id)[3]
    lease = await worker.redis.command("HGET", leases, strange.request_id)
    later = lease.replace(b'"outcome"', b'"unheard_of":1,"outcome"')
    await worker.redis.command("HSET", leases, strange.request_id, later)
    worker.crash(strange)
    await abandoned(worker, principal)
    assert await sweep_out(worker) == 1
    assert await worker.holds(principal) == {strange.request_id}


async def test_a_schema_that_is_missing_is_a_store_out_of_reach(worker):
    """The sweeper waits for it, and its worker goes on."""
    principal = caller(TOTAL)
    hold = await abandoned(worker, principal)
    await trio.sleep(LEASE)
    assert await worker.sweeper.sweep() == 0
    await trio.sleep(LEASE)
    await worker.postgres.fetch("ALTER SCHEMA gateway RENAME TO away")
    try:
        with pytest.raises(StoreUnavailable):
            await worker.sweeper.sweep()
        assert await worker.holds(principal) == {hold.request_id}
    finally:
        await worker.postgres.fetch("ALTER SCHEMA away RENAME TO gateway")
    assert await worker.sweeper.sweep() == 1


@pytest.mark.parametrize("at_once", [True, False])
async def test_a_lost_call_names_its_backend(worker, at_once):
    """Whether its slot was free at once or it had to wait for one."""
    principal = caller(TOTAL)
    wanted = ask(principal, 10, 90, dispatched=at_once)
    wanted.opaque["backend"] = "http://gpu-1:11434" if at_once else None
    hold, _ = await worker.quota.reserve(wanted)
    if not at_once:
        await worker.quota.mark_dispatched(hold, "http://gpu-1:11434")
    worker.crash(hold)
    assert await sweep_out(worker) == 1
    (row,) = await worker.rows(principal)
    assert (row["backend"], row["basis"]) == ("http://gpu-1:11434", "estimated")


async def test_a_row_that_is_there_already_decides(worker):
    """Its worker died between the row and the settle."""
    principal = caller(TOTAL)
    hold, _ = await worker.quota.reserve(ask(principal, 10, 90))
    await worker.ledger.write([row_of(hold, 44)])
    worker.crash(hold)
    assert await sweep_out(worker) == 1
    (row,) = await worker.rows(principal)
    assert (row["outcome"], row["charged_tokens"]) == ("completed", 44)
    found = await worker.counters(principal)
    assert (found["s|t|total"], found["h|t|total"]) == (44, 0)


@pytest.fixture
def clock():
    """Time as it is by this worker, that can be made to go by."""
    return MockClock(rate=1.0)


async def run_out(worker, principal, hold):
    """Let a lease be over by Redis."""
    leases = tenant_keys(principal.tenant.id)[3]
    lease = (await worker.redis.command("HGET", leases, hold.request_id)).split(b"|")
    lease[2] = b"1"
    await worker.redis.command("HSET", leases, hold.request_id, b"|".join(lease))


async def test_nobody_is_swept_before_the_lease_is_over_by_both_clocks(clock, books, redis_url):
    """Redis says that it is over; then this worker's own clock must see no renewal for as long."""
    async with open_worker(books, redis_url, lease=30, limit=600) as worker:
        principal = caller(TOTAL)
        hold = await abandoned(worker, principal)
        assert await worker.sweeper.sweep() == 0
        clock.jump(40)
        assert await worker.sweeper.sweep() == 0
        await run_out(worker, principal, hold)
        assert await worker.sweeper.sweep() == 0
        clock.jump(15)
        assert await worker.sweeper.sweep() == 0
        # one renewal, and all begins anew
        worker.quota.live[hold.request_id] = hold
        await worker.renewals.beat()
        worker.crash(hold)
        await run_out(worker, principal, hold)
        clock.jump(15)
        assert await worker.sweeper.sweep() == 0
        clock.jump(15)
        assert await worker.sweeper.sweep() == 0
        assert await worker.holds(principal) == {hold.request_id}
        clock.jump(15)
        assert await worker.sweeper.sweep() == 1


async def test_a_clock_step_sweeps_nobody_alive(worker):
    """A lease that ended long ago by Redis, of a hold that is still being renewed."""
    principal = caller(TOTAL)
    hold, _ = await worker.quota.reserve(ask(principal))
    others: Any = _Others()
    elsewhere = Sweeper(worker.redis, others, worker.ledger, interval=1, lease=LEASE, renewal=1)
    for _ in range(4):
        await worker.renewals.beat()
        await run_out(worker, principal, hold)
        assert await elsewhere.sweep() == 0
        await trio.sleep(LEASE / 2)


class _Others:
    """The quota of another worker, which has no call under way."""

    live: ClassVar[dict[str, object]] = {}


async def test_a_live_call_of_this_worker_is_never_swept(worker):
    """However old its lease: this worker knows better."""
    principal = caller(TOTAL)
    await worker.quota.reserve(ask(principal))
    assert await sweep_out(worker) == 0


async def test_two_sweepers_meet_on_one_hold(books, redis_url, worker):
    """One row, one charge."""
    principal = caller(TOTAL)
    await abandoned(worker, principal)
    async with open_worker(books, redis_url, lease=LEASE) as other:
        await trio.sleep(LEASE)
        for sweeper in (worker.sweeper, other.sweeper):
            await sweeper.sweep()
        await trio.sleep(LEASE)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(worker.sweeper.sweep)
            nursery.start_soon(other.sweeper.sweep)
    (row,) = await worker.rows(principal)
    hold, standing = await worker.quota.reserve(ask(principal, 10, 10))
    assert standing.budget.remaining == 1000 - row["charged_tokens"] - 20
    await worker.end(hold)


async def test_without_postgres_the_sweep_does_nothing(books, redis_url):
    """The hold waits, and is closed when PostgreSQL is back."""
    async with (
        open_door(books) as door,
        open_worker(door.url, redis_url, lease=LEASE) as worker,
    ):
        principal = caller(TOTAL)
        hold = await abandoned(worker, principal)
        await trio.sleep(LEASE)
        assert await worker.sweeper.sweep() == 0
        await trio.sleep(LEASE)
        door.shut()
        with pytest.raises(StoreUnavailable):
            await worker.sweeper.sweep()
        assert await worker.holds(principal) == {hold.request_id}
        assert (await worker.counters(principal))["h|t|total"] == 100
        door.reopen()
        assert await worker.sweeper.sweep() == 1


async def test_half_a_hold_is_found_all_the_same(worker):
    """A hold without its lease counts as long expired."""
    principal = caller(TOTAL)
    hold = await abandoned(worker, principal)
    await worker.redis.command("DEL", tenant_keys(principal.tenant.id)[3])
    assert await worker.sweeper.sweep() == 0
    await trio.sleep(LEASE)
    assert await worker.sweeper.sweep() == 1
    (row,) = await worker.rows(principal)
    assert (row["request_id"], row["basis"]) == (hold.request_id, "estimated")


async def test_a_tenant_without_holds_leaves_the_index_in_the_end(worker):
    """Not while it was announced lately, and not while it has holds."""
    idle, busy, recent = caller(), caller(), caller()
    for principal in (idle, busy, recent):
        hold, _ = await worker.quota.reserve(ask(principal))
        if principal is not busy:
            await worker.end(hold)
    for principal in (idle, busy):
        await worker.redis.command("ZADD", INDEX, 5, principal.tenant.id)
    await worker.sweeper.sweep()
    listed = {name.decode() for name in await worker.redis.command("ZRANGE", INDEX, 0, -1)}
    assert listed == {busy.tenant.id, recent.tenant.id}


async def test_a_tenant_announced_meanwhile_stays_in_the_index(worker):
    """The script takes out only what the sweeper had read."""
    assert await worker.redis.command("ZADD", INDEX, 6, "tn_x") == 1
    assert await worker.redis.script("unlist", [INDEX], ["tn_x", "5"]) == 0
    assert await worker.redis.script("unlist", [INDEX], ["tn_x", "6"]) == 1


async def test_a_lost_index_is_made_anew_by_a_scan(worker):
    """Holds are found without it, and without a second look at those listed."""
    principals = [caller(TOTAL) for _ in range(3)]
    for principal in principals:
        await abandoned(worker, principal)
    await worker.redis.command("DEL", INDEX)
    await trio.sleep(LEASE)
    assert await worker.sweeper.sweep() == 0
    assert await worker.sweeper.sweep(scan=True) == 0
    await trio.sleep(LEASE)
    assert await worker.sweeper.sweep(scan=True) == 3


async def test_a_scan_reads_on_to_its_end(worker, monkeypatch):
    """Page by page."""
    monkeypatch.setattr("trio_gateway.services.quota.sweep.PAGE", 1)
    principals = [caller() for _ in range(40)]
    for principal in principals:
        await worker.quota.reserve(ask(principal))
    await worker.redis.command("DEL", INDEX)
    await worker.sweeper.sweep(scan=True)
    assert await worker.redis.command("ZCARD", INDEX) == 40


async def test_the_sweep_goes_on_by_itself_and_outlives_outages(books, redis_url):
    """It waits while Redis is away, and after it; PostgreSQL's absence only delays it."""
    async with (
        open_door(books) as to_postgres,
        open_door(redis_url) as to_redis,
        open_worker(to_postgres.url, to_redis.url, lease=LEASE) as worker,
    ):
        principal = caller(TOTAL)
        await abandoned(worker, principal)
        to_postgres.shut()
        to_redis.shut()
        await worker.connected(wanted=False)
        await worker.nursery.start(worker.sweeper.run)
        await trio.sleep(0.15)  # some rounds of nothing
        to_redis.reopen()
        await worker.connected()
        await trio.sleep(3 * LEASE)  # some rounds that fail
        assert len(await worker.holds(principal)) == 1
        to_postgres.reopen()
        while await worker.holds(principal):
            await trio.lowlevel.checkpoint()
        assert [row["outcome"] for row in await worker.rows(principal)] == ["lost"]


async def test_nothing_is_listed_after_everything_was_lost(worker, redis_url):
    """A sweep of an empty Redis is no error."""
    await abandoned(worker, caller())
    empty(redis_url)
    assert await worker.sweeper.sweep(scan=True) == 0


async def test_whoever_counts_is_told_what_each_sweep_found(worker):
    """All holds that are open, of living and dead workers, and those that were settled."""
    told = []
    worker.sweeper.found = lambda found, settled: told.append((found, settled))
    await worker.quota.reserve(ask(caller(TOTAL), 10, 90))
    await abandoned(worker, caller(TOTAL))
    await sweep_out(worker)
    assert told == [(2, 0), (2, 1)]
    await worker.sweeper.sweep()
    assert told[2:] == [(1, 0)]
