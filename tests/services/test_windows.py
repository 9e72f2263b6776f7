"""Sliding windows: requests and tokens, of a key and of its tenant."""

from math import ceil

import pytest
import trio

from tests.account import ask, caller, one_database, open_worker, window_sets
from trio_gateway.core.domain import Limits
from trio_gateway.core.errors import RateLimited

MINUTE = 60.0  # seconds; how long a window is


@pytest.fixture(scope="module")
def books(stores):
    with one_database(stores) as url:
        yield url


@pytest.fixture
async def worker(books, redis_url):
    async with open_worker(books, redis_url) as opened:
        yield opened


async def go_by(worker, principal, seconds):
    """Let so much time have passed for every hit in the windows of a caller."""
    for name in window_sets(principal):
        flat = await worker.redis.command("ZRANGE", name, 0, -1, "WITHSCORES")
        for member, at in zip(flat[::2], flat[1::2], strict=True):
            earlier = int(float(at)) - ceil(seconds * 1_000_000)
            await worker.redis.command("ZADD", name, earlier, member)


def requests(limit):
    return Limits(requests_per_minute=limit)


def tokens(limit):
    return Limits(tokens_per_minute=limit)


async def refused(worker, wanted):
    with pytest.raises(RateLimited) as caught:
        await worker.quota.reserve(wanted)
    assert wanted.request_id not in worker.quota.live
    return caught.value


@pytest.mark.parametrize("scope", ["tenant", "key"])
async def test_exactly_the_limit_of_requests_is_admitted(worker, scope):
    """Three fit into a limit of three, whichever scope sets it; the fourth is refused."""
    principal = caller(**{scope: requests(3)})
    remaining = []
    for _ in range(3):
        _, standing = await worker.quota.reserve(ask(principal))
        remaining.append(standing.requests.remaining)
        assert (standing.requests.limit, standing.requests.reset) == (3, 60.0)
    assert remaining == [2, 1, 0]
    error = await refused(worker, ask(principal))
    assert 45 < error.retry_after <= 60
    assert error.should_retry is None
    assert error.standing.requests.remaining == 0


async def test_a_refusal_leaves_no_hit(worker):
    """Hammering does not push the window's end away: what is refused is not counted."""
    principal = caller(requests(1))
    await worker.quota.reserve(ask(principal))
    first = await refused(worker, ask(principal))
    for _ in range(20):
        again = await refused(worker, ask(principal))
    assert again.retry_after < first.retry_after
    await go_by(worker, principal, again.retry_after)
    await worker.quota.reserve(ask(principal))


async def test_retry_after_is_exact_for_requests(worker):
    """A call is refused before the instant that was named, and admitted right after it."""
    principal = caller(key=requests(2))
    await worker.quota.reserve(ask(principal))
    await go_by(worker, principal, MINUTE / 4)
    await worker.quota.reserve(ask(principal))
    error = await refused(worker, ask(principal))
    assert error.retry_after <= MINUTE * 3 / 4
    await go_by(worker, principal, error.retry_after - 10)
    early = await refused(worker, ask(principal))
    assert 0 < early.retry_after <= 10
    await go_by(worker, principal, early.retry_after)
    await worker.quota.reserve(ask(principal))
    # the second hit of the first pair still stands
    await refused(worker, ask(principal))


async def test_retry_after_is_exact_for_tokens(worker):
    """It waits for as many of the oldest hits to leave as the call's least need takes."""
    principal = caller(tokens(100))
    await worker.quota.reserve(ask(principal, 40, 0))
    await go_by(worker, principal, MINUTE / 4)
    await worker.quota.reserve(ask(principal, 40, 0))
    short_wait = await refused(worker, ask(principal, 30, 0))
    long_wait = await refused(worker, ask(principal, 90, 0))
    assert long_wait.retry_after - short_wait.retry_after > MINUTE / 8
    await go_by(worker, principal, short_wait.retry_after)
    await worker.quota.reserve(ask(principal, 30, 0))


async def test_a_window_slides(worker):
    """After the window everything fits again, and the remaining numbers say so."""
    principal = caller(Limits(requests_per_minute=1, tokens_per_minute=50))
    _, first = await worker.quota.reserve(ask(principal, 10, 20))
    error = await refused(worker, ask(principal))
    await go_by(worker, principal, error.retry_after)
    _, second = await worker.quota.reserve(ask(principal, 10, 20))
    assert (first.requests, first.tokens) == (second.requests, second.tokens)
    assert second.tokens.remaining == 20


async def test_a_token_window_that_expired_as_a_whole_starts_from_nothing(worker):
    """A caller who pauses for longer than Redis keeps the set is not charged for it for ever."""
    principal = caller(tokens(50))
    hold, _ = await worker.quota.reserve(ask(principal, 10, 40))
    await worker.end(hold)
    for name in window_sets(principal):
        await worker.redis.command("PEXPIRE", name, 0)
    _, standing = await worker.quota.reserve(ask(principal, 10, 20))
    assert standing.tokens.remaining == 20


async def test_hits_that_weigh_nothing_leave_the_window_too(worker):
    """A model that weighs nothing takes no tokens, and its hits are in nobody's way."""
    principal = caller(tokens(50))
    hold, standing = await worker.quota.reserve(ask(principal, 10, 40, milli=0))
    assert standing.tokens.remaining == 50
    await worker.quota.reserve(ask(principal, 10, 40, milli=0))
    await worker.end(hold, 0)
    await go_by(worker, principal, MINUTE)
    _, standing = await worker.quota.reserve(ask(principal, 10, 20))
    assert standing.tokens.remaining == 20


async def test_the_keys_of_windows_expire(worker):
    """Whoever calls once leaves no window behind: every set has a time to live, settled or not."""
    principal = caller(*[Limits(requests_per_minute=5, tokens_per_minute=500)] * 2)
    hold, _ = await worker.quota.reserve(ask(principal))
    for charged in (None, 3):
        for name in window_sets(principal):
            assert 0 < await worker.redis.command("PTTL", name) <= 61_000
        if charged is None:
            await worker.end(hold, 3)


async def test_a_thousand_hits_in_one_breath_are_all_counted(worker):
    """Members are unique per hit, however many share a millisecond."""
    principal = caller(Limits(requests_per_minute=1000, tokens_per_minute=10_000_000))
    started = []

    async def reserve():
        hold, _ = await worker.quota.reserve(ask(principal, 1, 1))
        started.append(hold.started_us)

    await worker.quota.reserve(ask(principal, 1, 1))
    async with trio.open_nursery() as nursery:
        for _ in range(998):
            nursery.start_soon(reserve)
    by_millisecond: dict[int, list[int]] = {}
    for instant in started:
        by_millisecond.setdefault(instant // 1000, []).append(instant)
    assert max(map(len, by_millisecond.values())) > 1, "the burst was too slow to show anything"
    _, standing = await worker.quota.reserve(ask(principal, 1, 1))
    assert standing.requests.remaining == 0
    assert standing.tokens.remaining == 10_000_000 - 2000
    await refused(worker, ask(principal, 1, 1))


async def test_the_window_of_a_key_is_its_own_and_its_tenants_is_shared(worker):
    """Two keys each have their limit, and together no more than their tenant's."""
    first = caller(requests(3), requests(2))
    second = caller(requests(3), requests(2), tenant_id=first.tenant.id)
    await worker.quota.reserve(ask(first))
    _, standing = await worker.quota.reserve(ask(first))
    assert (standing.requests.limit, standing.requests.remaining) == (2, 0)
    await refused(worker, ask(first))
    _, standing = await worker.quota.reserve(ask(second))
    assert (standing.requests.limit, standing.requests.remaining) == (3, 0)
    error = await refused(worker, ask(second))
    assert error.standing.requests.limit == 3


async def test_of_two_scopes_the_tighter_is_told(worker):
    """The header is about the limit that will be met first, not about the smaller one."""
    busy = caller(tokens(100), tokens(60))
    other = caller(tokens(100), tenant_id=busy.tenant.id)
    _, standing = await worker.quota.reserve(ask(busy, 10, 10))
    assert (standing.tokens.limit, standing.tokens.remaining) == (60, 40)
    await worker.quota.reserve(ask(other, 10, 50))
    _, standing = await worker.quota.reserve(ask(busy, 0, 10, milli=500))
    assert (standing.tokens.limit, standing.tokens.remaining) == (100, 15)


async def test_tokens_are_weighted(worker):
    """A model that weighs 2.5 takes two and a half times its tokens from the window."""
    principal = caller(tokens(100))
    _, standing = await worker.quota.reserve(ask(principal, 10, 10, milli=2500))
    assert standing.tokens.remaining == 50
    _, standing = await worker.quota.reserve(ask(principal, 3, 0, milli=1))
    assert standing.tokens.remaining == 49


async def test_the_ceiling_shrinks_to_what_the_window_has_left(worker):
    """Output is cut to what fits, down to the least output, under which the call is refused."""
    principal = caller(tokens(100))
    hold, standing = await worker.quota.reserve(ask(principal, 10, 500))
    assert (hold.ceiling, hold.cost, standing.tokens.remaining) == (90, 100, 0)
    await worker.end(hold, 74)
    hold, _ = await worker.quota.reserve(ask(principal, 10, 500))
    assert hold.ceiling == 16
    await worker.end(hold, 11)  # 85 used
    await refused(worker, ask(principal, 0, 500))
    hold, _ = await worker.quota.reserve(ask(principal, 0, 15))
    assert hold.ceiling == 15


async def test_a_settle_corrects_the_window_to_what_was_used(worker):
    """What was held and not used is free at once, in both scopes, at the hit's own instant."""
    principal = caller(tokens(100), tokens(90))
    hold, _ = await worker.quota.reserve(ask(principal, 10, 80))
    await refused(worker, ask(principal, 10, 20))
    await worker.end(hold, 30)
    hold, standing = await worker.quota.reserve(ask(principal, 10, 20))
    assert standing.tokens.remaining == 30
    await worker.end(hold, 0)
    _, standing = await worker.quota.reserve(ask(principal, 0, 60))
    assert (standing.tokens.limit, standing.tokens.remaining) == (90, 0)


async def test_a_charge_above_the_hold_is_counted_in_full(worker):
    """The prompt estimate may err; the window then says none is left, never less."""
    principal = caller(tokens(100))
    hold, _ = await worker.quota.reserve(ask(principal, 10, 80))
    await worker.end(hold, 130)
    error = await refused(worker, ask(principal, 1, 1))
    assert error.standing.tokens.remaining == 0
    assert 45 < error.retry_after <= 60


async def test_a_settle_after_the_window_has_slid_changes_nothing_in_it(worker):
    """A hit that has left takes its correction along."""
    principal = caller(tokens(100))
    hold, _ = await worker.quota.reserve(ask(principal, 10, 80))
    error = await refused(worker, ask(principal, 10, 20))
    await go_by(worker, principal, error.retry_after)
    _, standing = await worker.quota.reserve(ask(principal, 10, 20))
    await worker.end(hold, 10)
    assert standing.tokens.remaining == 70
    _, standing = await worker.quota.reserve(ask(principal, 10, 20))
    assert standing.tokens.remaining == 40


async def test_a_corrected_hit_leaves_the_window_once(worker):
    """And takes along what it was corrected to, while later hits stay."""
    principal = caller(tokens(100), tokens(100))
    for charged in (30, 5, 25):
        hold, _ = await worker.quota.reserve(ask(principal, 10, 10))
        await worker.end(hold, charged)
    await go_by(worker, principal, MINUTE / 2)
    await worker.quota.reserve(ask(principal, 5, 10))
    await go_by(worker, principal, MINUTE / 2)
    _, standing = await worker.quota.reserve(ask(principal, 10, 10))
    assert standing.tokens.remaining == 100 - 15 - 20


@pytest.mark.parametrize("scope", ["tenant", "key"])
async def test_a_prompt_that_alone_exceeds_the_window_is_told_not_to_retry(worker, scope):
    """No wait would help: `should_retry` is false and there is no `retry_after`."""
    principal = caller(**{scope: tokens(100)})
    error = await refused(worker, ask(principal, 101, 1))
    assert (error.should_retry, error.retry_after) == (False, None)
    assert error.standing.tokens.remaining == 100
    await worker.quota.reserve(ask(principal, 99, 1))


async def test_a_prompt_that_fits_without_its_least_output_is_told_not_to_retry(worker):
    """100 tokens can never hold a prompt of 90 with sixteen more."""
    principal = caller(tokens(100))
    error = await refused(worker, ask(principal, 90, 20))
    assert (error.should_retry, error.retry_after) == (False, None)


@pytest.mark.parametrize(
    "limits",
    [Limits(requests_per_minute=0), Limits(tokens_per_minute=0)],
    ids=["requests", "tokens"],
)
@pytest.mark.parametrize("scope", ["tenant", "key"])
async def test_zero_is_none(worker, limits, scope):
    """A limit of 0 admits nothing, not even a call that weighs nothing, and no wait would help."""
    for milli in (1000, 0):
        error = await refused(worker, ask(caller(**{scope: limits}), 1, 1, milli=milli))
        assert (error.should_retry, error.retry_after) == (False, None)


async def test_null_is_unlimited_and_has_no_header(worker):
    """Nobody is told of a limit that is not set."""
    _, standing = await worker.quota.reserve(ask(caller(), 10**6, 10**6))
    assert (standing.requests, standing.tokens, standing.budget) == (None, None, None)


async def test_a_lowered_limit_counts_what_was_there_before(worker):
    """A window is not forgotten when its limit changes."""
    wide = caller(requests(5))
    for _ in range(3):
        await worker.quota.reserve(ask(wide))
    narrow = caller(requests(2), tenant_id=wide.tenant.id, key_id=wide.key.id)
    error = await refused(worker, ask(narrow))
    assert error.standing.requests.remaining == 0


async def test_a_hundred_callers_at_once_admit_exactly_what_fits(worker):
    """Reserves that race for the last unit are served one after another."""
    principal = caller(requests(1000), tokens(3 * 30 + 5))
    admitted = []

    async def reserve():
        try:
            hold, _ = await worker.quota.reserve(ask(principal, 10, 20))
        except RateLimited:
            return
        admitted.append(hold)

    async with trio.open_nursery() as nursery:
        for _ in range(100):
            nursery.start_soon(reserve)
    assert [hold.cost for hold in admitted] == [30, 30, 30]


async def test_no_more_calls_of_a_tenant_are_in_flight_than_allowed(books, redis_url):
    """The cap is on open holds of all its keys; a settle makes room at once."""
    async with open_worker(books, redis_url, in_flight=2) as worker:
        first = caller(requests(100))
        second = caller(requests(100), tenant_id=first.tenant.id)
        hold, _ = await worker.quota.reserve(ask(first, dispatched=False))
        await worker.quota.reserve(ask(second))
        error = await refused(worker, ask(first))
        assert error.retry_after == 1
        assert error.standing.requests.remaining == 98
        await worker.quota.reserve(ask(caller()))
        await worker.end(hold, 0)
        await worker.quota.reserve(ask(second))


@pytest.mark.parametrize("scope", ["tenant", "key"])
async def test_a_share_of_a_window_is_left_to_others(worker, scope):
    """Who may fill four fifths is refused beyond them, and told when there is room again."""
    principal = caller(**{scope: requests(10)})
    for _ in range(8):
        await worker.quota.reserve(ask(principal, share=800))
    error = await refused(worker, ask(principal, share=800))
    assert 45 < error.retry_after <= 60
    assert error.should_retry is None
    for _ in range(2):
        await worker.quota.reserve(ask(principal))
    await refused(worker, ask(principal))


async def test_others_hits_count_against_a_share(worker):
    """Where others have filled four fifths nothing is left of the share."""
    principal = caller(requests(5))
    for _ in range(4):
        await worker.quota.reserve(ask(principal))
    await refused(worker, ask(principal, share=800))
    await worker.quota.reserve(ask(principal))


async def test_a_share_of_tokens_bounds_the_ceiling(worker):
    """The output is cut to what the share has left, not to what the window has."""
    principal = caller(tokens(1000))
    await worker.quota.reserve(ask(principal, prompt=100, output=500, share=800))
    hold, _ = await worker.quota.reserve(ask(principal, prompt=50, output=500, share=800))
    assert hold.ceiling == 150
    error = await refused(worker, ask(principal, prompt=50, output=500, share=800))
    assert 45 < error.retry_after <= 60


@pytest.mark.parametrize("limit", [requests(1), tokens(30)])
async def test_an_empty_window_takes_what_is_larger_than_its_share(worker, limit):
    """A call that no share could hold is admitted once nobody has hit the window."""
    principal = caller(limit)
    await worker.quota.reserve(ask(principal, prompt=10, output=20, share=800))
    error = await refused(worker, ask(principal, prompt=10, output=20, share=800))
    assert error.retry_after <= MINUTE
    await go_by(worker, principal, error.retry_after)
    await worker.quota.reserve(ask(principal, prompt=10, output=20, share=800))
