"""Budgets: held at admission, charged once at the end, exact to the unit."""

from datetime import UTC, datetime, timedelta
from fractions import Fraction
from math import ceil

import pytest
import trio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.account import ask, caller, one_database, open_worker, past_row
from tests.proxy import open_door
from trio_gateway.core.domain import Limits, Period
from trio_gateway.core.errors import BudgetExhausted, StoreUnavailable
from trio_gateway.core.tokens import charge
from trio_gateway.services.quota.answers import until_reset
from trio_gateway.services.quota.keys import tenant_keys

DAY_US = 86_400_000_000
pytestmark = pytest.mark.usefixtures("same_day")


@pytest.fixture(scope="module")
def books(stores):
    with one_database(stores) as url:
        yield url


@pytest.fixture
async def worker(books, redis_url):
    async with open_worker(books, redis_url) as opened:
        yield opened


def budget(units, period=Period.TOTAL):
    return Limits(budget=units, budget_period=period)


def again(principal, tenant=None, key=None):
    """The same tenant and key under other limits."""
    return caller(tenant, key, tenant_id=principal.tenant.id, key_id=principal.key.id)


def left(standing):
    """What the budget has left after a call's hold."""
    return standing.budget.remaining


async def refused(worker, wanted):
    with pytest.raises(BudgetExhausted) as caught:
        await worker.quota.reserve(wanted)
    assert wanted.request_id not in worker.quota.live
    assert caught.value.should_retry is False
    return caught.value


@pytest.mark.parametrize("scope", ["tenant", "key"])
async def test_a_budget_is_held_and_then_charged_once(worker, scope):
    """What a call may cost leaves the budget at once; what it did not cost comes back."""
    principal = caller(**{scope: budget(1000)})
    hold, standing = await worker.quota.reserve(ask(principal, 10, 90))
    assert (standing.budget.limit, standing.budget.remaining) == (1000, 900)
    assert hold.cost == 100
    await worker.end(hold, 25)
    _, standing = await worker.quota.reserve(ask(principal, 10, 90))
    assert standing.budget.remaining == 875
    assert standing.requests is None
    assert standing.tokens is None


async def test_a_model_that_weighs_nothing_costs_nothing(worker):
    """Its holds come and go like any other's, whatever the budget has left."""
    principal = caller(budget(100), budget(50))
    for _ in range(2):
        hold, standing = await worker.quota.reserve(ask(principal, 10, 90, milli=0))
        assert (hold.cost, standing.budget.remaining) == (0, 50)
        await worker.end(hold, 0)
        assert worker.quota.unsettled == {}
        assert await worker.holds(principal) == set()


async def test_a_stored_row_decides_what_is_charged(worker):
    """The settle goes by the row, not by the worker's own idea."""
    principal = caller(budget(1000))
    hold, _ = await worker.quota.reserve(ask(principal, 10, 90))
    await worker.end(hold, 25)
    await worker.end(hold, 60)
    _, standing = await worker.quota.reserve(ask(principal, 10, 90))
    assert standing.budget.remaining == 875
    assert [row["charged_tokens"] for row in await worker.rows(principal)] == [25]


async def test_zero_is_none_and_null_is_unlimited(worker):
    """A budget of 0 admits nothing, not even what weighs nothing; without one nothing is told."""
    error = await refused(worker, ask(caller(budget(0)), 1, 1))
    assert error.retry_after is None
    assert error.standing.budget.reset is None
    await refused(worker, ask(caller(key=budget(0)), 1, 1, milli=0))
    _, standing = await worker.quota.reserve(ask(caller(), 10**6, 10**6))
    assert standing.budget is None


class Between:
    """Numbers from the one to the other, to the second."""

    def __init__(self, *bounds):
        self._bounds = bounds

    def __contains__(self, found):
        return any(least - 1 <= found <= most + 1 for least, most in self._bounds)


async def resets(worker, period, began_us):
    """Return what may be told of a period's end by whoever was asked between then and now."""
    spans = [(us, until_reset(period, us)) for us in (began_us, await worker.now_us())]
    ends = {us / 1_000_000 + left for us, left in spans if left is not None}  # two at midnight
    first, last = (us / 1_000_000 for us, _ in spans)
    return Between(*((end - last, end - first) for end in ends))


@pytest.mark.parametrize("period", list(Period))
async def test_a_refusal_says_when_the_budget_starts_anew(worker, period):
    """Midnight UTC, the first of the month, or never."""
    began = await worker.now_us()
    error = await refused(worker, ask(caller(budget(5, period)), 10, 1))
    if period is Period.TOTAL:
        assert error.retry_after is None
    else:
        expected = await resets(worker, period, began)
        assert error.retry_after in expected
        assert error.standing.budget.reset in expected


@pytest.mark.parametrize(
    ("instant", "day", "month"),
    [
        (datetime(2030, 1, 31, 23, 59, 59, tzinfo=UTC), 1, 1),
        (datetime(2030, 12, 31, 12, tzinfo=UTC), 43_200, 43_200),
        (datetime(2028, 2, 28, tzinfo=UTC), 86_400, 2 * 86_400),
        (datetime(2030, 3, 1, tzinfo=UTC), 86_400, 31 * 86_400),
    ],
)
def test_a_period_ends_at_midnight_utc(instant, day, month):
    """Also over leap days and the end of a year."""
    now_us = int(instant.timestamp()) * 1_000_000
    assert until_reset(Period.DAY, now_us) == day
    assert until_reset(Period.MONTH, now_us) == month
    assert until_reset(Period.TOTAL, now_us) is None


async def test_the_refusing_scope_says_when_to_come_back(worker):
    """The tighter scope is in the headers; the one that refused names the wait."""
    principal = caller(budget(10, Period.TOTAL), budget(0, Period.DAY))
    began = await worker.now_us()
    error = await refused(worker, ask(principal, 10, 0))
    assert error.standing.budget.limit == 0
    assert error.retry_after in await resets(worker, Period.DAY, began)


async def test_of_two_budgets_the_tighter_is_told(worker):
    """With the reset of its own period."""
    principal = caller(budget(100, Period.TOTAL), budget(80, Period.DAY))
    _, standing = await worker.quota.reserve(ask(principal, 10, 10))
    assert (standing.budget.limit, standing.budget.remaining) == (80, 60)
    assert standing.budget.reset is not None
    other = caller(budget(100, Period.TOTAL), tenant_id=principal.tenant.id)
    await worker.quota.reserve(ask(other, 10, 40))
    _, standing = await worker.quota.reserve(ask(principal, 10, 10))
    assert (standing.budget.limit, standing.budget.remaining) == (100, 10)
    assert standing.budget.reset is None


async def test_key_and_tenant_are_taken_together_or_not_at_all(worker):
    """A call that its key's budget refuses takes nothing from its tenant's, nor from a window."""
    limits = Limits(requests_per_minute=10, tokens_per_minute=500, budget=500)
    poor = caller(limits, budget(20))
    await refused(worker, ask(poor, 30, 10))
    rich = caller(limits, tenant_id=poor.tenant.id)
    _, standing = await worker.quota.reserve(ask(rich, 10, 10))
    assert standing.budget.remaining == 480
    assert (standing.requests.remaining, standing.tokens.remaining) == (9, 480)
    assert await worker.counters(poor) | {f"h|k:{poor.key.id}|total": 0} == await worker.counters(
        poor
    )


async def test_the_ceiling_is_the_least_of_ask_and_what_is_left(worker):
    """And under min(least output, ask) the call is refused."""
    principal = caller(budget(100), budget(90))
    hold, _ = await worker.quota.reserve(ask(principal, 10, 30))
    assert hold.ceiling == 30
    hold, standing = await worker.quota.reserve(ask(principal, 10, 30))
    assert hold.ceiling == 30
    assert standing.budget.remaining == 10
    await refused(worker, ask(principal, 0, 11))
    await refused(worker, ask(principal, 1, 10))
    hold, _ = await worker.quota.reserve(ask(principal, 0, 10))
    assert hold.ceiling == 10
    await refused(worker, ask(principal, 0, 0))


async def test_between_the_least_output_and_the_ask_the_ceiling_gives_way(worker):
    """Sixteen tokens left are an answer, fifteen are none."""
    principal = caller(budget(26))
    hold, _ = await worker.quota.reserve(ask(principal, 10, 2000))
    assert hold.ceiling == 16
    await refused(worker, ask(caller(budget(25)), 10, 2000))
    await refused(worker, ask(caller(budget(25)), 10, 16))
    hold, _ = await worker.quota.reserve(ask(caller(budget(25)), 10, 15))
    assert hold.ceiling == 15


async def test_an_embedding_holds_its_prompt_alone(worker):
    """It asks for no output, and needs none to be left."""
    principal = caller(budget(10))
    hold, standing = await worker.quota.reserve(ask(principal, 10, 0))
    assert (hold.ceiling, hold.cost, standing.budget.remaining) == (0, 10, 0)


@pytest.mark.parametrize("spare", [0, 29])
async def test_a_hundred_callers_at_once_admit_exactly_what_fits(worker, spare):
    """At one unit below the next call, and at the very unit."""
    principal = caller(budget(4 * 30 + spare), budget(10_000))
    admitted, turned_away = [], []

    async def reserve():
        try:
            hold, _ = await worker.quota.reserve(ask(principal, 14, 16))
        except BudgetExhausted as error:
            turned_away.append(error)
        else:
            admitted.append(hold)

    async with trio.open_nursery() as nursery:
        for _ in range(100):
            nursery.start_soon(reserve)
    assert (len(admitted), len(turned_away)) == (4, 96)
    assert {left(error.standing) for error in turned_away} <= {spare, *range(30, 121)}


async def test_a_changed_budget_counts_at_once_in_both_directions(worker):
    """The counters know what was spent and held, whatever the limit was then."""
    principal = caller(budget(100))
    hold, _ = await worker.quota.reserve(ask(principal, 10, 50))
    await worker.end(hold, 40)
    await worker.quota.reserve(ask(principal, 10, 10))
    await refused(worker, ask(again(principal, budget(70)), 10, 1))
    _, standing = await worker.quota.reserve(ask(again(principal, budget(1000)), 10, 10))
    assert standing.budget.remaining == 1000 - 40 - 20 - 20


async def test_a_changed_period_counts_at_once(worker):
    """What was spent today, this month and ever are all exact, asked for before or not."""
    principal = caller(budget(1000, Period.DAY))
    now = datetime.fromtimestamp(await worker.now_us() / 1_000_000, UTC)
    earlier = now.replace(day=1, hour=0) if now.day > 1 else now
    before = earlier.replace(day=1) - timedelta(days=2)
    for instant, units in ((earlier, 100), (before, 200)):
        row = past_row(principal, units, int(instant.timestamp() * 1_000_000))
        await worker.ledger.write([row])
    today = 0 if now.day > 1 else 100
    hold, standing = await worker.quota.reserve(ask(principal, 10, 10))
    assert standing.budget.remaining == 1000 - today - 20
    await worker.end(hold, 7)
    for period, spent in ((Period.MONTH, 107), (Period.TOTAL, 307), (Period.DAY, today + 7)):
        changed = again(principal, budget(1000, period))
        hold, standing = await worker.quota.reserve(ask(changed, 10, 10))
        assert standing.budget.remaining == 1000 - spent - 20
        await worker.end(hold, 0)


async def test_a_budget_given_to_a_key_later_knows_what_the_key_spent(worker):
    """Counters are assigned from the ledger, whenever they come to be needed."""
    principal = caller()
    hold, _ = await worker.quota.reserve(ask(principal, 10, 50))
    await worker.end(hold, 40)
    await worker.quota.reserve(ask(principal, 5, 5))
    limited = again(principal, budget(500), budget(100))
    _, standing = await worker.quota.reserve(ask(limited, 10, 10))
    assert standing.budget.remaining == 100 - 40 - 10 - 20


async def test_a_day_that_is_over_leaves_the_day_budget_and_stays_in_the_month(worker):
    """A call begun yesterday and settled today is yesterday's."""
    principal = caller(budget(1000, Period.DAY), budget(1000, Period.TOTAL))
    hold, _ = await worker.quota.reserve(ask(principal, 10, 90))
    # Let the hold and the counters look as they do after midnight.
    _, counters, holds, *_ = tenant_keys(principal.tenant.id)
    now_us = await worker.now_us()
    today = datetime.fromtimestamp(now_us / 1_000_000, UTC).date()
    yesterday = today - timedelta(days=1)
    hold.started_us -= DAY_US
    hold.text = hold.text.replace(str(today), str(yesterday)).replace(
        str(hold.started_us + DAY_US), str(hold.started_us)
    )
    await worker.redis.command("HSET", holds, hold.request_id, hold.text)
    for kind in ("s", "h"):
        units = await worker.redis.command("HGET", counters, f"{kind}|t|{today}")
        await worker.redis.command("HSET", counters, f"{kind}|t|{yesterday}", units)
        await worker.redis.command("HDEL", counters, f"{kind}|t|{today}")
    _, standing = await worker.quota.reserve(ask(principal, 10, 90))
    assert standing.budget.remaining == 800  # the key's total: both calls
    await worker.end(hold, 60)
    found = await worker.counters(principal)
    assert (found[f"s|t|{today}"], found[f"h|t|{today}"]) == (0, 100)
    assert f"s|t|{yesterday}" not in found
    assert found[f"s|k:{principal.key.id}|total"] == 60


@settings(max_examples=12, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    st.lists(
        st.tuples(st.integers(0, 1_000_000), st.integers(0, 40_000_000), st.integers(0, 2**31 - 1)),
        min_size=20,
        max_size=60,
    )
)
async def test_lua_and_python_round_up_alike(books, redis_url, cases):
    """The hold is the exact product rounded up, up to the largest ask and weight there can be."""
    async with open_worker(books, redis_url) as worker:
        principal = caller()
        for milli, prompt, output in cases:
            hold, _ = await worker.quota.reserve(ask(principal, prompt, output, milli=milli))
            assert hold.cost == charge(prompt + hold.ceiling, milli)
            assert hold.cost == ceil(Fraction((prompt + output) * milli, 1000))


@settings(max_examples=12, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    st.lists(
        st.tuples(
            st.integers(1, 1_000_000),
            st.integers(0, 10**12),
            st.integers(0, 100_000),
            st.integers(0, 2**31 - 1),
        ),
        min_size=20,
        max_size=60,
    )
)
async def test_the_ceiling_is_the_most_that_the_budget_pays_for(books, redis_url, cases):
    """Not a token less, not a unit over; refused exactly where the least output does not fit."""
    async with open_worker(books, redis_url) as worker:
        for milli, units, prompt, output in cases:
            wanted = ask(caller(budget(units)), prompt, output, milli=milli)
            fits = charge(prompt + min(16, output), milli) <= units and units > 0
            if not fits:
                await refused(worker, wanted)
                continue
            hold, standing = await worker.quota.reserve(wanted)
            assert hold.ceiling == min(output, units * 1000 // milli - prompt)
            assert hold.cost == charge(prompt + hold.ceiling, milli) <= units
            assert left(standing) == units - hold.cost


async def test_a_call_that_waits_for_a_slot_says_when_it_is_dispatched(worker):
    """The phase in Redis is what a sweeper will go by."""
    principal = caller(budget(100))
    hold, _ = await worker.quota.reserve(ask(principal, dispatched=False))
    leases = tenant_keys(principal.tenant.id)[3]
    phase = (await worker.redis.command("HGET", leases, hold.request_id)).split(b"|")[0]
    assert (phase, hold.phase) == (b"queued", "queued")
    await worker.quota.mark_dispatched(hold, "b")
    phase = (await worker.redis.command("HGET", leases, hold.request_id)).split(b"|")[0]
    assert (phase, hold.phase) == (b"dispatched", "dispatched")


async def test_a_queued_call_whose_hold_is_gone_is_not_dispatched(worker):
    """It may have been swept, its account closed: nothing is sent upstream for it."""
    principal = caller(budget(100))
    hold, _ = await worker.quota.reserve(ask(principal, dispatched=False))
    await worker.redis.command("DEL", *tenant_keys(principal.tenant.id))
    with pytest.raises(StoreUnavailable) as caught:
        await worker.quota.mark_dispatched(hold, "b")
    assert caught.value.retry_after == 1


async def test_redis_away_refuses_and_takes_nothing(books, redis_url):
    """Fail closed: no hold, and no doubt about a call that was never sent."""
    async with open_door(redis_url) as door, open_worker(books, door.url) as worker:
        principal = caller(budget(100))
        await worker.quota.reserve(ask(principal))
        door.shut()
        await worker.connected(wanted=False)
        assert worker.quota.reachable_since is None
        with pytest.raises(StoreUnavailable):
            await worker.quota.reserve(ask(principal))
        assert worker.quota.doubtful == {}


async def test_a_settle_that_redis_does_not_take_is_kept(books, redis_url):
    """It is tried again at the next beat, and counted once."""
    async with open_door(redis_url) as door, open_worker(books, door.url) as worker:
        principal = caller(budget(100))
        hold, _ = await worker.quota.reserve(ask(principal, 10, 40))
        door.shut()
        await worker.end(hold, 30)
        assert list(worker.quota.unsettled) == [hold.request_id]
        door.reopen()
        await worker.connected()
        await worker.renewals.beat()
        assert worker.quota.unsettled == {}
        _, standing = await worker.quota.reserve(ask(principal, 10, 40))
        assert left(standing) == 20


async def test_a_settle_whose_answer_was_lost_is_counted_once(books, redis_url):
    """The second attempt finds no hold and makes the tenant count anew."""
    async with open_door(redis_url) as door, open_worker(books, door.url) as worker:
        principal = caller(budget(100))
        hold, _ = await worker.quota.reserve(ask(principal, 10, 40))
        door.swallow()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(worker.end, hold, 30)
            await door.swallowed.wait()
            door.cut()
        assert list(worker.quota.unsettled) == [hold.request_id]
        door.reopen()
        await worker.connected()
        assert await worker.holds(principal) == set()
        await worker.renewals.beat()
        assert not await worker.warm(principal)
        _, standing = await worker.quota.reserve(ask(principal, 10, 40))
        assert left(standing) == 20


async def test_settles_kept_for_redis_are_bounded(books, redis_url, monkeypatch):
    """Beyond the bound the sweep finds them."""
    monkeypatch.setattr("trio_gateway.services.quota.quota.UNSETTLED", 2)
    async with open_door(redis_url) as door, open_worker(books, door.url) as worker:
        principal = caller()
        held = [(await worker.quota.reserve(ask(principal)))[0] for _ in range(3)]
        door.shut()
        for hold in held:
            await worker.end(hold, 1)
        assert len(worker.quota.unsettled) == 2
        assert worker.quota.live == {}


async def test_tenants_known_to_be_listed_are_bounded(worker, monkeypatch):
    """A worker forgets whom it listed rather than grow."""
    monkeypatch.setattr("trio_gateway.services.quota.quota.TENANTS_KNOWN", 1)
    first, second = caller(), caller()
    for principal in (first, second, first):
        await worker.quota.reserve(ask(principal))
    listed = await worker.redis.command("ZRANGE", "tg:tenants", 0, -1)
    assert {principal.tenant.id.encode() for principal in (first, second)} == set(listed)
