"""A temporary increase of a budget: room at once, gone on time, and the books agree throughout."""

import json
from datetime import UTC, datetime, timedelta

import pytest
import trio

from tests.account import ask, empty, open_worker
from trio_gateway.core.errors import BudgetExhausted
from trio_gateway.pipeline.verify import verify
from trio_gateway.services.account_rows import BIGGEST, NotFound, Refused
from trio_gateway.services.accounts import Accounts
from trio_gateway.services.key_cache import KeyCache
from trio_gateway.services.keyring import Keyring
from trio_gateway.services.tenant_rows import read_installation_secret
from trio_gateway.services.tenants import Tenants

LIMIT = 60
HOUR = timedelta(hours=1)


class Desk:
    """The operator's books of one tenant `acme` with one key, and what workers know of it."""

    def __init__(self, postgres, secret):
        self.postgres = postgres
        self.accounts = Accounts(postgres, "test")
        self.keyring = Keyring(postgres, secret, "test")
        self.ticks = 0.0
        self.tenants = Tenants(postgres, secret, cache=KeyCache(100, 60, lambda: self.ticks))
        self.tenants.trusted = True
        self.key = ""

    async def budgets(self):
        """Return what a worker believes: the tenant's budget and the key's."""
        principal = await self.tenants.authenticate(self.key)
        return principal.tenant.limits.budget, principal.key.limits.budget

    async def ended(self, table):
        """Let PostgreSQL's clock have come to the end of the increase."""
        await self.postgres.fetch(f"UPDATE gateway.{table} SET budget_extra_until = now()")


@pytest.fixture
async def desk(postgres):
    with trio.fail_after(LIMIT):
        desk = Desk(postgres, await read_installation_secret(postgres))
        await desk.accounts.create("acme", {"all_models": True, "budget": 100})
        desk.key = (await desk.keyring.issue("acme", {"name": "k", "budget": 50}))["key"]
        yield desk


async def test_an_increase_is_the_sum_until_it_is_ended(desk):
    """For tenant and key each; what is shown says what holds, and what was added until when."""
    until = datetime.now(UTC) + HOUR
    row = await desk.accounts.extend("acme", 7, until)
    assert (row["budget"], row["effective_budget"]) == (100, 107)
    assert (row["budget_extra"], row["budget_extra_until"]) == (7, until)
    await desk.keyring.extend("k", 5, HOUR, "acme")
    desk.tenants.forget_all()
    assert await desk.budgets() == (107, 55)
    shown, key = await desk.accounts.show("acme"), await desk.keyring.show("k")
    assert (shown["effective_budget"], key["effective_budget"]) == (107, 55)
    await desk.accounts.extend("acme", 1, HOUR)
    assert (await desk.accounts.show("acme"))["effective_budget"] == 101
    for _ in range(2):
        row = await desk.accounts.end_extension("acme")
        assert (row["effective_budget"], row["budget_extra"]) == (100, None)
        assert (await desk.keyring.end_extension("k"))["effective_budget"] == 50
    desk.tenants.forget_all()
    assert await desk.budgets() == (100, 50)


@pytest.mark.parametrize("table", ["tenants", "api_keys"])
async def test_it_ends_on_time_for_a_key_that_is_cached(desk, table):
    """By PostgreSQL's clock: nobody announces it, and the proof would be believed for longer."""
    span = timedelta(seconds=30)  # a proof would be believed for sixty
    if table == "tenants":
        await desk.accounts.extend("acme", 7, span)
    else:
        await desk.keyring.extend("k", 7, span)
    more, less = ((107, 50), (100, 50)) if table == "tenants" else ((100, 57), (100, 50))
    assert await desk.budgets() == more
    assert await desk.budgets() == more  # from the cache, whose clock stands
    await desk.ended(table)
    assert await desk.budgets() == more
    desk.ticks = 30.0
    assert await desk.budgets() == less


async def test_a_proof_never_outlives_the_increase(desk):
    """It goes stale by the cache's clock within what was left at the read, not a moment later."""
    await desk.accounts.extend("acme", 7, timedelta(seconds=50))
    await desk.keyring.extend("k", 7, timedelta(seconds=20))
    await desk.budgets()
    (proof,) = [desk.tenants._cache.fresh(name) for name in desk.tenants._cache]
    assert 0 < proof.changes_at <= 20
    await desk.keyring.end_extension("k")
    desk.tenants.forget_all()
    await desk.budgets()
    (proof,) = [desk.tenants._cache.fresh(name) for name in desk.tenants._cache]
    assert 20 < proof.changes_at <= 50


@pytest.mark.parametrize(
    ("tokens", "until", "param"),
    [
        (0, HOUR, "tokens"),
        (-1, HOUR, "tokens"),
        (BIGGEST - 49, HOUR, "tokens"),
        (1, timedelta(0), "until"),
        (1, -HOUR, "until"),
        (1, timedelta(days=40_000), "until"),
        (1, datetime(2020, 1, 1, tzinfo=UTC), "until"),
        (1, datetime(2100, 1, 1), "until"),  # noqa: DTZ001 - that is the fault
    ],
)
async def test_a_bad_increase_is_refused_and_the_field_named(desk, tokens, until, param):
    """Nothing is changed and nothing recorded."""
    before = await desk.accounts.show("acme")
    acts = (desk.accounts.extend("acme", tokens, until), desk.keyring.extend("k", tokens, until))
    for extend in acts:
        with pytest.raises(Refused) as caught:
            await extend
        assert caught.value.param == param
    assert await desk.accounts.show("acme") == before
    query = "SELECT FROM gateway.admin_events WHERE action LIKE '%.extend'"
    assert await desk.postgres.fetch(query) == []


async def test_what_is_unlimited_cannot_be_extended(desk):
    """There is nothing to add to; the budget is the field at fault."""
    await desk.accounts.update("acme", {"budget": None})
    await desk.keyring.update("k", {"budget": None})
    for extend in (desk.accounts.extend("acme", 1, HOUR), desk.keyring.extend("k", 1, HOUR)):
        with pytest.raises(Refused) as caught:
            await extend
        assert caught.value.param == "budget"
    for extend in (desk.accounts.extend("ghost", 1, HOUR), desk.keyring.extend("ghost", 1, HOUR)):
        with pytest.raises(NotFound):
            await extend


async def test_an_increase_is_recorded_with_what_was_and_what_is(desk):
    """In the transaction that makes it; one event for each act."""
    await desk.accounts.extend("acme", 7, HOUR)
    await desk.accounts.end_extension("acme")
    await desk.keyring.extend("k", 7, HOUR)
    await desk.keyring.end_extension("k")
    rows = await desk.postgres.fetch("SELECT * FROM gateway.admin_events ORDER BY id OFFSET 2")
    assert [row["action"] for row in rows] == [
        *("tenant.extend", "tenant.end_extension", "key.extend", "key.end_extension")
    ]
    extras = [
        (json.loads(row["before"])["budget_extra"], json.loads(row["after"])["budget_extra"])
        for row in rows
    ]
    assert extras == [(None, 7), (7, None)] * 2


async def test_a_changed_budget_keeps_its_increase(desk):
    """It is added to whatever the budget is; without a budget there is no limit."""
    await desk.accounts.extend("acme", 7, HOUR)
    assert (await desk.accounts.update("acme", {"budget": 10}))["effective_budget"] == 17
    assert (await desk.accounts.update("acme", {"budget": None}))["effective_budget"] is None
    assert (await desk.accounts.update("acme", {"budget": BIGGEST}))["effective_budget"] == BIGGEST


async def test_the_books_agree_before_during_and_after(desk, database, redis_url):
    """Room at once, refusal at its end; warm and cold counters, hydrate and verify say the same."""
    async with open_worker(database, redis_url) as worker:

        async def call(units, *, fits):
            desk.tenants.forget_all()
            principal = await desk.tenants.authenticate(desk.key)
            if fits:
                hold, standing = await worker.quota.reserve(ask(principal, units, 0))
                await worker.end(hold)
                return standing.budget
            with pytest.raises(BudgetExhausted) as caught:
                await worker.quota.reserve(ask(principal, units, 0))
            assert caught.value.standing is not None
            return caught.value.standing.budget

        async def agree():
            for _ in range(2):
                found = await verify(worker.postgres, worker.redis)
                assert (found["ok"], found["differences"]) == (True, [])
                empty(redis_url)
                await worker.age()

        await call(50, fits=True)
        await call(1, fits=False)
        await desk.keyring.extend("k", 40, HOUR)
        window = await call(30, fits=True)
        assert (window.limit, window.remaining) == (90, 10)
        await agree()
        window = await call(5, fits=True)
        assert (window.limit, window.remaining) == (90, 5)
        await desk.ended("api_keys")
        window = await call(1, fits=False)
        assert (window.limit, window.remaining) == (50, 0)
        await agree()
