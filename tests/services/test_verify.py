"""`ledger verify`: silent while the books agree, exact about where they do not."""

from dataclasses import replace
from datetime import UTC, datetime

import pytest
import trio
import trio.lowlevel

from tests.account import ask, caller, empty, open_worker, past_row, row_of
from trio_gateway.core.domain import Limits, Period
from trio_gateway.pipeline.verify import verify
from trio_gateway.services.quota.keys import tenant_keys

TOTAL = Limits(budget=100_000, budget_period=Period.TOTAL)
DAY = Limits(budget=100_000, budget_period=Period.DAY)
MONTH = Limits(budget=100_000, budget_period=Period.MONTH)
pytestmark = pytest.mark.usefixtures("same_day")


@pytest.fixture
async def worker(database, redis_url):
    async with open_worker(database, redis_url) as opened:
        yield opened


async def checked(worker):
    return await verify(worker.postgres, worker.redis)


async def test_empty_books_agree(worker):
    """Nothing to compare, nothing wrong."""
    assert await checked(worker) == {
        "ok": True,
        "checked": 0,
        "holds_open": 0,
        "differences": [],
    }


async def test_ordinary_books_agree(worker):
    """Settled, open, stored and not yet settled; every period; cold and warm; key and tenant."""
    principal = caller(TOTAL, DAY)
    monthly = caller(MONTH, MONTH)
    for who in (principal, monthly, caller()):
        hold, _ = await worker.quota.reserve(ask(who, 10, 90))
        await worker.end(hold, 25)
        await worker.quota.reserve(ask(who, 10, 90))
        hold, _ = await worker.quota.reserve(ask(who, 10, 90))
        await worker.ledger.write([row_of(hold, 77)])
    found = await checked(worker)
    assert found["differences"] == []
    # 3 tenants and 3 keys with a sum for today; 2 + 2 counters, each spent and held
    assert (found["ok"], found["checked"], found["holds_open"]) == (True, 6 + 8, 6)


async def test_every_tenant_is_looked_at(worker, monkeypatch):
    """Page by page, however many there are."""
    monkeypatch.setattr("trio_gateway.services.quota.snapshot.PAGE", 1)
    for _ in range(40):
        await worker.quota.reserve(ask(caller(TOTAL)))
    found = await checked(worker)
    assert (found["ok"], found["holds_open"], found["checked"]) == (True, 40, 80)


async def test_a_wrong_sum_is_named_with_its_scope_and_day(worker):
    """Too much, too little, and a sum without any row."""
    rich, poor = caller(), caller()
    now_us = await worker.now_us()
    today = datetime.fromtimestamp(now_us / 1_000_000, UTC).date()
    await worker.ledger.write([past_row(who, 50, now_us) for who in (rich, poor)])
    change = "UPDATE gateway.spend SET charged = charged + $2 WHERE scope = $1"
    await worker.postgres.fetch(change, f"t:{rich.tenant.id}", 5)
    await worker.postgres.fetch(change, f"k:{poor.key.id}", -5)
    await worker.postgres.fetch("INSERT INTO gateway.spend VALUES ('t:nobody', $1, 9)", today)
    found = await checked(worker)
    assert found["ok"] is False
    wrong = {difference["scope"]: difference for difference in found["differences"]}
    assert wrong[f"t:{rich.tenant.id}"] == {
        "kind": "sum",
        "scope": f"t:{rich.tenant.id}",
        "day": today.isoformat(),
        "rows": 50,
        "sum": 55,
    }
    assert (wrong[f"k:{poor.key.id}"]["rows"], wrong[f"k:{poor.key.id}"]["sum"]) == (50, 45)
    assert (wrong["t:nobody"]["rows"], wrong["t:nobody"]["sum"]) == (0, 9)
    assert len(wrong) == 3


async def test_days_that_retention_dropped_are_not_missed(worker):
    """Sums outlive their rows; rows without their sum are wrong on any day."""
    principal = caller()
    long_ago = int(datetime(2020, 2, 3, tzinfo=UTC).timestamp()) * 1_000_000
    await worker.ledger.write([past_row(principal, 50, long_ago + at) for at in range(2)])
    await worker.postgres.fetch("DELETE FROM gateway.ledger WHERE started_at = $1", _at(long_ago))
    assert (await checked(worker))["ok"] is True
    await worker.postgres.fetch("UPDATE gateway.spend SET charged = 49")
    found = await checked(worker)
    assert {difference["day"] for difference in found["differences"]} == {"2020-02-03"}


async def test_a_month_that_was_dropped_is_not_missed(worker):
    """And without any partition left there is nothing to hold against the sums."""
    months = await worker.postgres.fetch(
        "SELECT inhrelid::regclass::text AS name FROM pg_inherits "
        "WHERE inhparent = 'gateway.ledger'::regclass"
    )
    await worker.ledger.write([past_row(caller(), 50, await worker.now_us())])
    for month in sorted(row["name"] for row in months if not row["name"].endswith("default")):
        await worker.postgres.fetch(f"DROP TABLE {month}")
        assert (await checked(worker))["ok"] is True


def _at(instant_us):
    return datetime.fromtimestamp(instant_us // 1_000_000, UTC)


@pytest.mark.parametrize(
    ("counter", "name"), [("s|t|total", "spent"), ("h|t|total", "held")], ids=["spent", "held"]
)
async def test_a_wrong_counter_is_named(worker, counter, name):
    """With what it should say and what it says."""
    principal = caller(TOTAL)
    hold, _ = await worker.quota.reserve(ask(principal, 10, 90))
    await worker.end(hold, 25)
    await worker.quota.reserve(ask(principal, 10, 90))
    await worker.redis.command("HINCRBY", tenant_keys(principal.tenant.id)[1], counter, 3)
    found = await checked(worker)
    expected = 25 if name == "spent" else 100
    assert found["differences"] == [
        {
            "kind": "counter",
            "counter": name,
            "scope": f"t:{principal.tenant.id}",
            "period": "total",
            "expected": expected,
            "counted": expected + 3,
        }
    ]
    # cold counters are nobody's truth
    await worker.redis.command("HDEL", tenant_keys(principal.tenant.id)[0], "warm")
    assert (await checked(worker))["ok"] is True


async def test_a_hold_that_nobody_counts_is_found(worker):
    """A hold that vanished leaves its units held."""
    principal = caller(TOTAL)
    hold, _ = await worker.quota.reserve(ask(principal, 10, 90))
    await worker.redis.command("HDEL", tenant_keys(principal.tenant.id)[2], hold.request_id)
    found = await checked(worker)
    assert (found["ok"], found["holds_open"]) == (False, 0)
    assert found["differences"][0]["counter"] == "held"


async def test_a_request_with_two_rows_is_named(worker):
    """The ledger's key cannot forbid two rows that begin at different instants."""
    row = past_row(caller(), 5, await worker.now_us())
    await worker.ledger.write([row])
    await worker.ledger.write([replace(row, started_us=row.started_us + 1)])
    found = await checked(worker)
    assert found["differences"] == [{"kind": "row", "request_id": row.request_id, "rows": 2}]


async def test_it_is_right_while_calls_come_and_go(worker):
    """Hundreds of calls under way, with all their rows and settles, and not one false alarm."""
    callers = [caller(TOTAL, DAY), caller(MONTH, TOTAL), caller(DAY)]
    over = False

    async def traffic(principal, charged):
        while not over:
            hold, _ = await worker.quota.reserve(ask(principal, 1, 5))
            await trio.lowlevel.checkpoint()
            await worker.end(hold, charged)

    async with trio.open_nursery() as nursery:
        for principal in callers:
            for charged in (0, 1, 2, 3):
                nursery.start_soon(traffic, principal, charged)
        for _ in range(12):
            found = await checked(worker)
            assert found["differences"] == []
        over = True
    assert (await checked(worker))["holds_open"] == 0


async def test_it_is_right_after_everything_was_lost(worker, redis_url):
    """An empty Redis agrees with any ledger."""
    hold, _ = await worker.quota.reserve(ask(caller(TOTAL), 10, 90))
    await worker.end(hold, 25)
    empty(redis_url)
    assert (await checked(worker))["ok"] is True


async def test_it_needs_no_script_in_redis(worker):
    """A tool that only compares has not loaded them."""
    await worker.quota.reserve(ask(caller(TOTAL)))
    await worker.redis.command("SCRIPT", "FLUSH")
    found = await checked(worker)
    assert (found["ok"], found["holds_open"]) == (True, 1)
