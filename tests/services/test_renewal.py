"""Live holds are kept alive, put back when they were lost, and cut when they were swept."""

import pytest
import trio
from trio.testing import MockClock

from tests.account import ask, caller, empty, one_database, open_worker, row_of, until
from tests.proxy import open_door
from trio_gateway.core.domain import Limits, Period
from trio_gateway.core.errors import StoreUnavailable
from trio_gateway.services.quota.keys import INDEX, tenant_keys
from trio_gateway.services.quota.renewal import Renewals

TOTAL = Limits(budget=1000, budget_period=Period.TOTAL)


@pytest.fixture(scope="module")
def books(stores):
    with one_database(stores) as url:
        yield url


@pytest.fixture
async def worker(books, redis_url):
    async with open_worker(books, redis_url) as opened:
        yield opened


async def lease_of(worker, principal, hold):
    text = await worker.redis.command("HGET", tenant_keys(principal.tenant.id)[3], hold.request_id)
    return text.decode().split("|", 5)


async def test_a_beat_carries_phase_counts_and_the_final_row(worker):
    """Everything that a sweeper would need, at every beat; the lease begins anew."""
    principal = caller(TOTAL)
    hold, _ = await worker.quota.reserve(ask(principal, dispatched=False))
    assert (await lease_of(worker, principal, hold))[:2] == ["queued", "0"]
    hold.output = 3
    await worker.renewals.beat()
    first = await lease_of(worker, principal, hold)
    assert (first[0], first[1], first[4], first[5]) == ("queued", "1", "3", "")
    hold.phase, hold.final = "final", row_of(hold, 17)
    await worker.renewals.beat()
    second = await lease_of(worker, principal, hold)
    assert second[:2] == ["final", "2"]
    assert int(second[2]) > int(first[2])
    assert '"charged_tokens":17' in second[5]
    assert await worker.warm(principal)


async def test_holds_of_many_tenants_are_renewed_in_one_beat(worker):
    """Each in its own script, all in one round trip."""
    principals = [caller() for _ in range(5)]
    held = [(await worker.quota.reserve(ask(principal)))[0] for principal in principals * 2]
    before = {hold.request_id: hold.renewed_at for hold in held}
    await worker.renewals.beat()
    assert all(hold.renewed_at > before[hold.request_id] for hold in held)
    assert {hold.renewals for hold in held} == {1}


async def test_lost_holds_are_put_back_and_the_account_stays_exact(worker, redis_url):
    """After FLUSHALL the next beat restores the holds; counting anew finds them."""
    principal = caller(TOTAL)
    settled, _ = await worker.quota.reserve(ask(principal, 10, 90))
    await worker.end(settled, 60)
    hold, _ = await worker.quota.reserve(ask(principal, 10, 40))
    empty(redis_url)
    await worker.renewals.beat()
    assert await worker.holds(principal) == {hold.request_id}
    assert not await worker.warm(principal)
    await worker.age()
    other, standing = await worker.quota.reserve(ask(principal, 10, 10))
    assert standing.budget.remaining == 1000 - 60 - 50 - 20
    assert hold.request_id in worker.quota.live
    await worker.end(hold, 30)
    await worker.end(other, 0)
    found = await worker.counters(principal)
    assert (found["s|t|total"], found["h|t|total"]) == (90, 0)


async def test_holds_put_back_are_listed_for_the_sweepers_again(worker, redis_url):
    """The index went with the data."""
    principal = caller(TOTAL)
    await worker.quota.reserve(ask(principal))
    empty(redis_url)
    await worker.renewals.beat()
    await worker.renewals.beat()
    assert await worker.redis.command("ZRANGE", INDEX, 0, -1) == [principal.tenant.id.encode()]


async def test_the_owner_of_a_swept_hold_is_cut(worker):
    """A worker that stood still too long: the account is closed, its call must stop."""
    principal = caller(TOTAL)
    hold, _ = await worker.quota.reserve(ask(principal, 10, 90))
    cuts = []
    hold.swept = lambda: cuts.append(hold.request_id)
    stored = await worker.end(hold, 10)  # by a sweeper elsewhere
    worker.quota.live[hold.request_id] = hold
    await worker.renewals.beat()
    assert cuts == [hold.request_id]
    assert worker.quota.live == {}
    assert await worker.holds(principal) == set()
    # its own row comes too late
    assert await worker.end(hold, 70) == stored
    other, standing = await worker.quota.reserve(ask(principal, 10, 10))
    assert standing.budget.remaining == 1000 - 10 - 20
    await worker.end(other)


async def test_a_hold_put_back_is_looked_up_as_soon_as_postgres_answers(books, redis_url):
    """Not at the first attempt only; and the other holds are renewed meanwhile."""
    async with open_door(books) as door, open_worker(door.url, redis_url) as worker:
        swept, alive = caller(TOTAL), caller(TOTAL)
        hold, _ = await worker.quota.reserve(ask(swept, 10, 90))
        other, _ = await worker.quota.reserve(ask(alive, 10, 90))
        cuts = []
        hold.swept = lambda: cuts.append(hold.request_id)
        await worker.end(hold, 10)
        worker.quota.live = {hold.request_id: hold, other.request_id: other}
        door.shut()
        with pytest.raises(StoreUnavailable):
            await worker.renewals.beat()
        assert (cuts, other.renewals) == ([], 1)
        with pytest.raises(StoreUnavailable):
            await worker.renewals.beat()
        assert (cuts, other.renewals) == ([], 2)
        door.reopen()
        await worker.renewals.beat()
        assert cuts == [hold.request_id]


async def swept_and_back(worker, principal):
    """Reserve a call whose row is written elsewhere and whose hold is there all the same."""
    hold, _ = await worker.quota.reserve(ask(principal, 10, 90))
    await worker.ledger.write([row_of(hold, 10)])
    cuts = []
    hold.swept = lambda: cuts.append(hold.request_id)
    await worker.renewals.beat()
    return hold, cuts


async def test_a_hold_not_renewed_for_a_lease_is_looked_up(worker):
    """It may have been swept and put back without this worker's hearing of it."""
    await worker.renewals.beat()
    hold, cuts = await swept_and_back(worker, caller(TOTAL))
    assert cuts == []
    hold.renewed_at -= 15.5
    await worker.renewals.beat()
    assert cuts == [hold.request_id]


async def test_after_a_reconnect_every_hold_is_looked_up(books, redis_url):
    """A renewal may have gone unanswered, or the server been rolled back to before a settle."""
    async with open_door(redis_url) as door, open_worker(books, door.url) as worker:
        await worker.renewals.beat()
        hold, cuts = await swept_and_back(worker, caller(TOTAL))
        assert cuts == []
        door.cut()
        await worker.connected(wanted=False)
        await worker.connected()
        await worker.renewals.beat()
        assert cuts == [hold.request_id]


async def test_a_call_whose_account_is_being_closed_is_not_marked(worker):
    """A look-up found its row; the settle is on its way, and the hold still there."""
    hold, _ = await worker.quota.reserve(ask(caller(TOTAL), dispatched=False))
    del worker.quota.live[hold.request_id]
    with pytest.raises(StoreUnavailable):
        await worker.quota.mark_dispatched(hold, "b")


async def test_a_call_that_is_over_is_not_cut_by_its_own_row(worker, redis_url):
    """Its hold was put back while its row was under way: the writer settles, nobody else."""
    await worker.renewals.beat()
    hold, cuts = await swept_and_back(worker, caller(TOTAL))
    empty(redis_url)
    hold.phase, hold.final = "final", row_of(hold, 10)
    await worker.renewals.beat()
    assert cuts == []
    assert hold.request_id in worker.quota.live


async def doubtful(worker, door, principal, **wanted):
    """Reserve a call whose answer never comes."""
    call = ask(principal, 10, 90, **wanted)
    door.swallow()

    async def reserve():
        with pytest.raises(StoreUnavailable):
            await worker.quota.reserve(call)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(reserve)
        await door.swallowed.wait()
        door.cut()
    door.reopen()
    await worker.connected()
    return call


async def test_a_reserve_whose_answer_was_lost_is_closed_as_refused(books, redis_url):
    """The caller heard 503: the hold that was taken all the same goes back, with a row of 0."""
    async with open_door(redis_url) as door, open_worker(books, door.url) as worker:
        principal = caller(TOTAL)
        await worker.hydrator.warm(principal.tenant.id, [("t", "total")])
        call = await doubtful(worker, door, principal)
        assert await worker.holds(principal) == {call.request_id}
        assert list(worker.quota.doubtful) == [call.request_id]
        await worker.renewals.beat()
        (row,) = await worker.rows(principal)
        assert (row["request_id"], row["outcome"]) == (call.request_id, "refused")
        assert (row["basis"], row["charged_tokens"], row["held_tokens"]) == ("none", 0, 100)
        assert (await worker.holds(principal), worker.quota.doubtful) == (set(), {})
        _, standing = await worker.quota.reserve(ask(principal, 10, 10))
        assert standing.budget is not None
        assert standing.budget.remaining == 980


@pytest.fixture
def clock():
    """Time as it is, that can be made to go by."""
    return MockClock(rate=1.0)


async def test_a_doubt_is_kept_for_a_lease_where_no_hold_is_found(clock, books, redis_url):
    """The command may still be under way; after that it is forgotten."""
    lease = 30.0
    async with (
        open_door(redis_url) as door,
        open_worker(books, door.url, lease=lease) as worker,
    ):
        call = await doubtful(worker, door, caller(TOTAL))  # it was answered: the tenant is cold
        await worker.renewals.beat()
        assert list(worker.quota.doubtful) == [call.request_id]
        clock.jump(lease)
        await worker.renewals.beat()
        assert worker.quota.doubtful == {}


async def test_doubts_are_bounded(books, redis_url, monkeypatch):
    """Beyond the bound the sweep finds the holds."""
    monkeypatch.setattr("trio_gateway.services.quota.quota.UNSETTLED", 0)
    async with open_door(redis_url) as door, open_worker(books, door.url) as worker:
        await doubtful(worker, door, caller())
        assert worker.quota.doubtful == {}


async def test_renewals_go_on_by_themselves_and_outlive_outages(books, redis_url):
    """While Redis is away nothing is sent; a beat that fails is followed by another."""
    async with (
        open_door(books) as to_postgres,
        open_door(redis_url) as to_redis,
        open_worker(to_postgres.url, to_redis.url) as worker,
    ):
        principal = caller(TOTAL)
        hold, _ = await worker.quota.reserve(ask(principal, 10, 90))
        await worker.end(hold, 10)
        worker.quota.live[hold.request_id] = hold
        cut = trio.Event()
        hold.swept = cut.set
        to_postgres.shut()
        to_redis.shut()
        await worker.connected(wanted=False)
        renewals = Renewals(worker.redis, worker.quota, worker.ledger, 0.02)
        await worker.nursery.start(renewals.run)
        await trio.sleep(0.1)
        assert hold.renewals == 0
        to_redis.reopen()
        await until(lambda: hold.renewals >= 3)
        assert not cut.is_set()
        to_postgres.reopen()
        await cut.wait()
