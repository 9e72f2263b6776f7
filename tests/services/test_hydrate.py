"""A cold tenant's counters come from the ledger, exactly, whatever happens meanwhile."""

from typing import Any

import pytest
import trio

from tests.account import ask, caller, empty, one_database, open_worker, row_of
from tests.proxy import open_door
from trio_gateway.core.domain import Limits, Period
from trio_gateway.core.errors import StoreUnavailable
from trio_gateway.services.quota.hydrate import GRACE, Hydrator
from trio_gateway.services.quota.keys import tenant_keys

TOTAL = Limits(budget=1000, budget_period=Period.TOTAL)
NEEDED = [("t", "total")]
pytestmark = pytest.mark.usefixtures("same_day")


@pytest.fixture(scope="module")
def books(stores):
    with one_database(stores) as url:
        yield url


@pytest.fixture
async def worker(books, redis_url):
    async with open_worker(books, redis_url) as opened:
        yield opened


class Paused:
    """PostgreSQL, with something that happens before a hydrate reads its snapshot."""

    def __init__(self, postgres, before):
        self._postgres = postgres
        self._before = before
        self.snapshots = 0

    async def fetch(self, *args):
        self.snapshots += 1
        await self._before()
        return await self._postgres.fetch(*args)


async def spent(worker, principal):
    """Warm the tenant and return what its counter says was spent."""
    await worker.hydrator.warm(principal.tenant.id, NEEDED)
    return (await worker.counters(principal))["s|t|total"]


async def remaining(worker, principal, prompt=1):
    """What is left for a call of `prompt` tokens, which is settled for nothing."""
    hold, standing = await worker.quota.reserve(ask(principal, prompt, 0))
    await worker.end(hold, 0)
    return standing.budget.remaining + prompt


async def test_counters_are_assigned_from_the_ledger(worker):
    """Spent is what the rows charge, held is what the open holds cost, for both scopes."""
    principal = caller(TOTAL, TOTAL)
    other = caller(TOTAL, TOTAL, tenant_id=principal.tenant.id)
    for who, charged in ((principal, 30), (other, 50)):
        hold, _ = await worker.quota.reserve(ask(who, 10, 90))
        await worker.end(hold, charged)
    await worker.quota.reserve(ask(other, 10, 10))
    expected = await worker.counters(principal)
    assert (expected["s|t|total"], expected["h|t|total"]) == (80, 20)
    assert expected[f"s|k:{principal.key.id}|total"] == 30
    await worker.redis.command("DEL", *tenant_keys(principal.tenant.id)[:2])
    needed = [*NEEDED, (f"k:{principal.key.id}", "total"), (f"k:{other.key.id}", "total")]
    await worker.hydrator.warm(principal.tenant.id, needed)
    assert await worker.counters(principal) == expected


async def test_rows_of_open_holds_are_left_to_their_settle(worker):
    """Between the row and the settle a call is held, not spent: neither twice nor not at all."""
    principal = caller(TOTAL)
    hold, _ = await worker.quota.reserve(ask(principal, 10, 90))
    (row,) = await worker.ledger.write([row_of(hold, 60)])
    await worker.redis.command("DEL", *tenant_keys(principal.tenant.id)[:2])
    assert await spent(worker, principal) == 0
    assert (await worker.counters(principal))["h|t|total"] == 100
    await worker.quota.settle([row])
    found = await worker.counters(principal)
    assert (found["s|t|total"], found["h|t|total"]) == (60, 0)


async def test_a_settle_without_its_hold_makes_the_tenant_cold(worker):
    """Counters are never patched by guesswork; the next call counts anew."""
    principal = caller(TOTAL)
    hold, _ = await worker.quota.reserve(ask(principal, 10, 90))
    await worker.redis.command("HDEL", tenant_keys(principal.tenant.id)[2], hold.request_id)
    before = await worker.counters(principal)
    await worker.end(hold, 60)
    assert not await worker.warm(principal)
    assert await worker.counters(principal) == before
    assert await remaining(worker, principal) == 940


async def test_losing_everything_and_counting_anew_gives_the_same(worker, redis_url):
    """FLUSHALL: cold, then as exact as before."""
    principal = caller(TOTAL)
    hold, _ = await worker.quota.reserve(ask(principal, 10, 90))
    await worker.end(hold, 42)
    empty(redis_url)
    assert not await worker.warm(principal)
    await worker.age()
    assert await remaining(worker, principal) == 958


async def test_another_run_id_means_cold(worker):
    """A server that came back with older data is not believed."""
    principal = caller(TOTAL)
    hold, _ = await worker.quota.reserve(ask(principal, 10, 90))
    before = await worker.counters(principal)
    await worker.end(hold, 42)
    await worker.redis.command("HSET", tenant_keys(principal.tenant.id)[1], "s|t|total", "0")
    worker.redis.run_id = "f" * 40
    with pytest.raises(StoreUnavailable):
        await worker.quota.reserve(ask(principal))
    await worker.age()
    assert before["s|t|total"] == 0
    assert await remaining(worker, principal) == 958


async def test_nobody_is_admitted_while_the_epoch_is_young(books, redis_url):
    """One renewal interval after Redis lost its data, so that live holds are back before."""
    empty(redis_url)
    async with open_worker(books, redis_url, aged=False, renewal=0.2) as worker:
        principal = caller(TOTAL)
        with pytest.raises(StoreUnavailable) as caught:
            await worker.quota.reserve(ask(principal))
        assert caught.value.retry_after == 1
        wait = await worker.hydrator.settled()
        assert wait <= 0.2 + GRACE
        await trio.sleep(wait)
        assert await worker.hydrator.settled() == 0
        await worker.quota.reserve(ask(principal))


async def test_data_lost_during_a_hydrate_makes_a_young_epoch(worker, redis_url):
    """The epoch is asked after each first step: no live hold may be missing from what follows."""
    principal = caller(TOTAL)

    async def lose_everything():
        empty(redis_url)

    paused: Any = Paused(worker.postgres, lose_everything)
    with pytest.raises(StoreUnavailable):
        await Hydrator(worker.redis, paused, 1).warm(principal.tenant.id, NEEDED)
    assert paused.snapshots == 1
    assert not await worker.warm(principal)


async def test_a_long_wait_is_told_in_full(books, redis_url):
    """`retry_after` is what remains, and never less than a second."""
    empty(redis_url)
    async with open_worker(books, redis_url, aged=False, renewal=9.5) as worker:
        with pytest.raises(StoreUnavailable) as caught:
            await worker.quota.reserve(ask(caller()))
        assert 9 < (caught.value.retry_after or 0) <= 10


async def test_a_hydrate_that_something_overtakes_begins_again(worker):
    """A settle between its two steps changes the generation."""
    principal = caller(TOTAL)
    hold, _ = await worker.quota.reserve(ask(principal, 10, 90))
    await worker.redis.command("HDEL", tenant_keys(principal.tenant.id)[0], "warm")

    async def settle_once():
        if hold.request_id in worker.quota.live:
            await worker.end(hold, 60)

    paused: Any = Paused(worker.postgres, settle_once)
    await Hydrator(worker.redis, paused, 1).warm(principal.tenant.id, NEEDED)
    assert paused.snapshots == 2
    found = await worker.counters(principal)
    assert (found["s|t|total"], found["h|t|total"]) == (60, 0)


@pytest.mark.parametrize("begun_warm", [False, True])
async def test_a_slow_hydrate_does_not_count_a_call_twice(worker, begun_warm):
    """Another worker warms the tenant and admits a call, whose row is there before the snapshot."""
    principal = caller(TOTAL, TOTAL)
    other = caller(TOTAL, tenant_id=principal.tenant.id)
    if begun_warm:  # by a call that needs fewer counters
        await worker.hydrator.warm(principal.tenant.id, NEEDED)
    held: list[Any] = []

    async def whole_call_elsewhere():
        if not held:
            hold, _ = await worker.quota.reserve(ask(other, 10, 90))
            held.append(hold)
            await worker.ledger.write([row_of(hold, 60)])

    overtaken: Any = Paused(worker.postgres, whole_call_elsewhere)
    slow = Hydrator(worker.redis, overtaken, 1)
    await slow.warm(principal.tenant.id, [*NEEDED, (f"k:{principal.key.id}", "total")])
    await worker.end(held[0], 60)
    found = await worker.counters(principal)
    assert (found["s|t|total"], found["h|t|total"]) == (60, 0)
    assert await remaining(worker, principal) == 940


async def test_a_tenant_that_never_stands_still_is_busy(worker):
    """After many attempts the call is refused, not admitted on a guess."""
    principal = caller(TOTAL)
    meta = tenant_keys(principal.tenant.id)[0]

    async def move():
        await worker.redis.command("HINCRBY", meta, "gen", 1)

    moving: Any = Paused(worker.postgres, move)
    restless = Hydrator(worker.redis, moving, 1)
    waits = []

    async def warm():
        with pytest.raises(StoreUnavailable) as caught:
            await restless.warm(principal.tenant.id, NEEDED)
        waits.append(caught.value.retry_after)

    async with trio.open_nursery() as nursery:
        for _ in range(3):
            nursery.start_soon(warm)
    assert waits == [1, 1, 1]


async def test_callers_who_find_a_tenant_cold_share_one_hydrate(worker):
    """A hundred at once cost PostgreSQL one snapshot."""
    principal = caller(TOTAL)
    paused: Any = Paused(worker.postgres, trio.lowlevel.checkpoint)
    shared = Hydrator(worker.redis, paused, 1)
    async with trio.open_nursery() as nursery:
        for _ in range(100):
            nursery.start_soon(shared.warm, principal.tenant.id, NEEDED)
    assert paused.snapshots == 1


async def test_a_tenant_that_goes_cold_again_and_again_is_refused(worker):
    """Admission gives up rather than loop for ever."""
    principal = caller(TOTAL)

    class Forgetful(Hydrator):
        async def warm(self, tenant_id, needed):
            await super().warm(tenant_id, needed)
            await worker.redis.command("DEL", tenant_keys(tenant_id)[0])

    worker.quota._hydrator = Forgetful(worker.redis, worker.postgres, 1)
    with pytest.raises(StoreUnavailable) as caught:
        await worker.quota.reserve(ask(principal))
    assert caught.value.retry_after == 1


async def test_without_postgres_a_cold_tenant_is_refused_and_a_warm_one_is_not_asked(
    books, redis_url
):
    """Counters cannot be made up; those that stand need no PostgreSQL."""
    async with open_door(books) as door, open_worker(door.url, redis_url) as worker:
        warm, cold = caller(TOTAL), caller(TOTAL)
        await worker.quota.reserve(ask(warm))
        door.shut()
        with pytest.raises(StoreUnavailable):
            await worker.quota.reserve(ask(cold))
        await worker.quota.reserve(ask(warm))
        door.reopen()
        await worker.quota.reserve(ask(cold))


async def test_an_unlimited_tenant_has_no_counters_and_needs_no_snapshot(worker):
    """It has holds all the same."""
    paused: Any = Paused(worker.postgres, trio.lowlevel.checkpoint)
    worker.quota._hydrator = Hydrator(worker.redis, paused, 1)
    principal = caller()
    hold, _ = await worker.quota.reserve(ask(principal))
    assert await worker.counters(principal) == {}
    assert await worker.holds(principal) == {hold.request_id}
    assert paused.snapshots == 0


async def test_counters_in_use_stay_when_others_are_needed(worker):
    """A call with a day budget does not take away what a total budget counts on."""
    principal = caller(TOTAL)
    hold, _ = await worker.quota.reserve(ask(principal, 10, 90))
    daily = caller(
        Limits(budget=1000, budget_period=Period.DAY),
        Limits(budget=900, budget_period=Period.MONTH),
        tenant_id=principal.tenant.id,
    )
    await worker.quota.reserve(ask(daily, 10, 40))
    found = await worker.counters(principal)
    assert {units for name, units in found.items() if name.startswith("h|t")} == {150}
    assert len(found) == 6
    await worker.end(hold, 60)
    assert (await worker.counters(principal))["s|t|total"] == 60
