"""Notices: written by PostgreSQL with the row that made them due, once, and read by page."""

import re
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
import trio

from tests.account import caller, past_row
from trio_gateway.clients.bridge import open_bridge
from trio_gateway.clients.postgres import open_listener, open_postgres
from trio_gateway.services.account_rows import BIGGEST, Refused
from trio_gateway.services.accounts import Accounts
from trio_gateway.services.audit import AuditLog, Refusal
from trio_gateway.services.keyring import Keyring
from trio_gateway.services.ledger.ledger import Ledger
from trio_gateway.services.notices.notices import CURRENT, SETTINGS, Notices
from trio_gateway.services.tenant_rows import read_installation_secret

LIMIT = 90
DAY = timedelta(days=1)
pytestmark = pytest.mark.usefixtures("same_day")


class Books:
    """Tenants and keys, and calls that they are charged for."""

    def __init__(self, postgres, secret):
        self.postgres = postgres
        self.accounts = Accounts(postgres, "test")
        self.keyring = Keyring(postgres, secret, "test")
        self.ledger = Ledger(postgres)
        self.notices = Notices(postgres)

    async def tenant(self, name, key=None, **values):
        """Make a tenant and a key; return their ids as a caller."""
        tenant = await self.accounts.create(name, {"budget_period": "day"} | values)
        made = await self.keyring.issue(name, {"budget_period": "day"} | (key or {}))
        return caller(tenant_id=tenant["id"], key_id=made["id"])

    async def charge(self, who, *charges, at=None):
        """Write a row for each charge, of calls that began now or then, in one transaction."""
        began = int((at or datetime.now(UTC)).timestamp() * 1_000_000)
        await self.ledger.write([past_row(who, units, began) for units in charges])

    async def seen(self):
        """Return what was noticed, the first first: scope, threshold, budget, spent."""
        rows = await self.postgres.fetch("SELECT * FROM gateway.budget_notices ORDER BY id")
        return [(row["scope"][0], row["threshold"], row["budget"], row["spent"]) for row in rows]


@pytest.fixture
async def books(postgres):
    with trio.fail_after(LIMIT):
        yield Books(postgres, await read_installation_secret(postgres))


async def test_each_threshold_is_noticed_once_by_the_call_that_reaches_it(books):
    """Not a unit before 80 per cent, nor before 100; and never again, however much follows."""
    who = await books.tenant("acme", budget=100)
    await books.charge(who, 40, 39)
    assert await books.seen() == []
    await books.charge(who, 1)
    assert await books.seen() == [("t", 80, 100, 80)]
    await books.charge(who, 19)
    assert len(await books.seen()) == 1
    await books.charge(who, 1)
    assert await books.seen() == [("t", 80, 100, 80), ("t", 100, 100, 100)]
    await books.charge(who, 500)
    assert len(await books.seen()) == 2


async def test_a_key_has_its_own_notices(books):
    """Key and tenant are two budgets: each is noticed by its own spending."""
    who = await books.tenant("acme", {"budget": 50}, budget=100)
    other = caller(tenant_id=who.tenant.id, key_id=(await books.keyring.issue("acme", {}))["id"])
    await books.charge(other, 60)
    assert await books.seen() == []
    await books.charge(who, 40)
    assert await books.seen() == [
        ("k", 80, 50, 40), ("t", 80, 100, 100), ("t", 100, 100, 100)
    ]  # fmt: skip
    rows = await books.postgres.fetch("SELECT tenant_id, key_id FROM gateway.budget_notices")
    assert {(row["tenant_id"], row["key_id"]) for row in rows} == {
        (who.tenant.id, who.key.id), (who.tenant.id, None)
    }  # fmt: skip


async def test_twenty_racing_calls_are_noticed_once(books, database):
    """Whichever writers pass a threshold, through whichever connections, there is one notice."""
    who = await books.tenant("acme", {"budget": 90}, budget=100)
    async with (
        open_bridge() as bridge,
        open_postgres(bridge, database, size=10) as one,
        open_postgres(bridge, database, size=10) as other,
        trio.open_nursery() as nursery,
    ):
        now = int(datetime.now(UTC).timestamp() * 1_000_000)
        for at in range(20):
            ledger = Ledger(one if at % 2 else other)
            nursery.start_soon(ledger.write, [past_row(who, 5, now + at)])
    rows = [(scope, at, budget) for scope, at, budget, _ in await books.seen()]
    assert sorted(rows) == [("k", 80, 90), ("k", 100, 90), ("t", 80, 100), ("t", 100, 100)]


async def test_writers_that_notice_the_same_in_opposite_orders_do_not_deadlock(books, database):
    """Every group is stored at its first try, and each budget is noticed once."""
    callers = [await books.tenant(f"t{at}", {"budget": 10}, budget=20) for at in range(8)]
    now = int(datetime.now(UTC).timestamp() * 1_000_000)
    async with (
        open_bridge() as bridge,
        open_postgres(bridge, database, size=8) as pool,
        trio.open_nursery() as nursery,
    ):
        for at in range(16):
            rows = [past_row(who, 2, now + at) for who in callers[:: 1 if at % 2 else -1]]
            nursery.start_soon(Ledger(pool).write, rows)
    rows = await books.postgres.fetch("SELECT scope, threshold FROM gateway.budget_notices")
    assert len(rows) == len({tuple(row) for row in rows}) == 8 * 2 * 2


@pytest.mark.parametrize(
    ("period", "ages", "noticed"),
    [("day", [1], False), ("day", [0], True), ("month", [40], False), ("total", [400], True)],
)
async def test_a_period_counts_what_began_in_it(books, period, ages, noticed):
    """Days and months are UTC's; what was spent in an earlier one does not count."""
    who = await books.tenant("acme", budget=100, budget_period=period)
    for age in ages:
        scope = f"t:{who.tenant.id}"
        await books.postgres.fetch(
            "INSERT INTO gateway.spend VALUES ($1, (now() AT TIME ZONE 'UTC')::date - $2::int, 79)",
            scope,
            age,
        )
    await books.charge(who, 1)
    assert bool(await books.seen()) is noticed


async def test_the_same_budget_is_noticed_again_in_the_next_period(books):
    """Once for each period: yesterday's notice is not today's."""
    who = await books.tenant("acme", budget=100)
    now = datetime.now(UTC)
    await books.charge(who, 90, at=now - DAY)
    await books.charge(who, 90, at=now)
    starts = await books.postgres.fetch("SELECT period_start FROM gateway.budget_notices")
    assert {row["period_start"] for row in starts} == {now.date(), (now - DAY).date()}


async def test_a_changed_budget_is_noticed_by_the_change(books):
    """Whatever changed it: smaller, larger, of another period, for a while or no more."""
    who = await books.tenant("acme", {"budget": 1000}, budget=1000)
    await books.charge(who, 104)
    await books.accounts.update("acme", {"weight_share": 2, "requests_per_minute": 5})
    assert await books.seen() == []
    await books.accounts.update("acme", {"budget": 100})
    assert await books.seen() == [("t", 80, 100, 104), ("t", 100, 100, 104)]
    await books.accounts.extend("acme", 25, timedelta(hours=1))
    assert (await books.seen())[2:] == [("t", 80, 125, 104)]
    await books.accounts.end_extension("acme")
    await books.accounts.update("acme", {"budget": 10_000})
    assert len(await books.seen()) == 3
    await books.accounts.update("acme", {"budget": 130, "budget_period": "total"})
    assert (await books.seen())[3:] == [("t", 80, 130, 104)]
    await books.keyring.update(who.key.id, {"budget": 105})
    assert (await books.seen())[4:] == [("k", 80, 105, 104)]


async def test_a_budget_lowered_by_hand_is_noticed_at_the_next_call(books):
    """Whatever the way to 80 per cent, and although this call costs nothing."""
    who = await books.tenant("acme", budget=1000)
    await books.charge(who, 90)
    await books.postgres.fetch("UPDATE gateway.tenants SET budget = 100")
    assert await books.seen() == []
    await books.charge(who, 0)
    assert await books.seen() == [("t", 80, 100, 90)]


WAITING = """
SELECT count(*) FROM pg_stat_activity
WHERE datname = current_database() AND wait_event_type = 'Lock'
"""


async def test_writers_that_notice_the_same_at_once_all_store_their_rows(books, database):
    """Ten calls that cost nothing end together, and each may find that a notice is due."""
    who = await books.tenant("acme", {"budget": 1000}, budget=1000)
    await books.charge(who, 90)
    await books.postgres.fetch("UPDATE gateway.tenants SET budget = 100")
    await books.postgres.fetch("UPDATE gateway.api_keys SET budget = 90")

    async def hold_back(connection):
        await connection.execute("LOCK TABLE gateway.budget_notices IN SHARE MODE")
        held.set()
        while await connection.fetchval(WAITING) < 10:
            await connection.execute("SELECT pg_stat_clear_snapshot(), pg_sleep(0.01)")

    held = trio.Event()
    async with (
        open_bridge() as bridge,
        open_postgres(bridge, database, size=10) as pool,
        trio.open_nursery() as nursery,
    ):
        nursery.start_soon(books.postgres.transact, hold_back)
        await held.wait()
        now = int(datetime.now(UTC).timestamp() * 1_000_000)
        for at in range(10):
            nursery.start_soon(Ledger(pool).write, [replace(past_row(who, 0, now), model=f"m{at}")])
    rows = [(scope, at, budget) for scope, at, budget, _ in await books.seen()]
    assert sorted(rows) == [("k", 80, 90), ("k", 100, 90), ("t", 80, 100)]
    assert len(await books.postgres.fetch("SELECT FROM gateway.ledger")) == 1 + 10


async def test_a_temporary_increase_counts_while_it_lasts(books):
    """Thresholds are of the budget with it; when it is over, of the budget alone."""
    who = await books.tenant("acme", budget=100)
    await books.charge(who, 79)
    await books.accounts.extend("acme", 100, timedelta(hours=1))
    await books.charge(who, 80)
    assert await books.seen() == []
    await books.charge(who, 1)
    assert await books.seen() == [("t", 80, 200, 160)]
    await books.postgres.fetch("UPDATE gateway.tenants SET budget_extra_until = now()")
    (row,) = await books.notices.current()
    assert (row["threshold"], row["budget"], row["spent"]) == (100, 100, 160)
    await books.charge(who, 0)
    assert (await books.seen())[1:] == [("t", 80, 100, 160), ("t", 100, 100, 160)]
    (row,) = await books.notices.current()
    assert (row["threshold"], row["budget"], row["spent"]) == (100, 100, 160)


@pytest.mark.parametrize("budget", [None, 0])
async def test_no_budget_and_none_at_all_are_never_near_their_end(books, budget):
    """Unlimited has no end, and what allows nothing was never there to be spent."""
    who = await books.tenant("acme", budget=budget)
    await books.charge(who, 1000)
    await refuse(books, who)
    assert await books.seen() == []


async def test_numbers_at_the_edge_lose_no_row(books):
    """The largest budget, increase and sums that fit their columns are noticed as any."""
    who = await books.tenant("acme", budget=BIGGEST - 1, budget_period="total")
    await books.keyring.update(who.key.id, {"budget": BIGGEST - 1})
    await books.accounts.extend("acme", 1, DAY)
    await books.postgres.fetch(
        "INSERT INTO gateway.spend VALUES ($1, '2020-01-01', $2), ($1, '2020-01-02', $2)",
        f"t:{who.tenant.id}",
        BIGGEST,
    )
    await books.charge(who, BIGGEST)
    assert ("t", 100, BIGGEST, BIGGEST) in await books.seen()
    assert ("k", 100, BIGGEST - 1, BIGGEST) in await books.seen()
    assert len(await books.postgres.fetch("SELECT FROM gateway.ledger")) == 1


async def refuse(books, who, code="insufficient_quota"):
    """Record a refusal as a worker does."""
    audit = AuditLog(books.postgres)
    audit.record(Refusal(code, 429, "POST", "/api/chat", "req", None, who.tenant.id, who.key.id))
    assert await audit.flush() == 0


async def test_a_refusal_with_a_rest_too_small_counts_as_spent(books):
    """From 80 per cent on calls are being refused, so the notice of 100 is due; once."""
    who = await books.tenant("acme", {"budget": 1000, "budget_period": "month"}, budget=100)
    await books.charge(who, 79)
    await refuse(books, who)
    assert await books.seen() == []
    await books.charge(who, 16)
    await refuse(books, who, "rate_limit_exceeded")
    assert await books.seen() == [("t", 80, 100, 95)]
    for _ in range(2):
        await refuse(books, who)
    assert await books.seen() == [("t", 80, 100, 95), ("t", 100, 100, 95)]


async def test_a_batch_that_rests_for_want_of_budget_counts_as_a_refusal(books):
    """Its lines are refused where no caller sees it."""
    who = await books.tenant("acme", budget=100)
    await books.charge(who, 95)
    await books.postgres.fetch(
        "INSERT INTO gateway.batches (id, tenant_id, key_id, endpoint, input_file_id,"
        " completion_window, fingerprint, expires_at)"
        " VALUES ('b', $1, $2, '/v1/embeddings', 'f', '24h', '', now())",
        who.tenant.id,
        who.key.id,
    )
    await books.postgres.fetch("UPDATE gateway.batches SET paused = 'insufficient_quota'")
    assert await books.seen() == [("t", 80, 100, 95), ("t", 100, 100, 95)]


async def test_a_notice_is_announced(books, database):
    """Whoever listens may send at once; the payload names the notice."""
    who = await books.tenant("acme", budget=100)
    heard, send = [], trio.Event()

    def deliver(payload):
        heard.append(payload)
        send.set()

    async with (
        open_bridge() as bridge,
        open_listener(bridge, database, "gateway_changes", deliver, lambda: None),
    ):
        await books.charge(who, 90)
        await send.wait()
    (row,) = await books.notices.listing()
    assert heard == [f"notice:{row['id']}"]


async def test_notices_are_read_by_page_and_by_condition(books):
    """The latest first, with names, also of what is gone."""
    for name in ("a", "b"):
        await books.charge(await books.tenant(name, {"name": "k"}, budget=100), 100)
    rows = await books.notices.listing()
    assert [(row["tenant"], row["threshold"]) for row in rows] == [
        ("b", 100), ("b", 80), ("a", 100), ("a", 80)
    ]  # fmt: skip
    assert list(rows[0]) == [
        *("id", "at", "tenant_id", "tenant", "key_id", "key", "threshold", "period"),
        *("period_start", "budget", "spent", "deliveries"),
    ]
    assert rows[0]["period_start"] == datetime.now(UTC).date().isoformat()
    assert rows[0]["deliveries"] == {"waiting": 0, "delivered": 0, "given_up": 0}
    pages = await books.notices.listing(limit=3)
    pages += await books.notices.listing(limit=3, before=pages[-1]["id"])
    assert pages == rows
    assert await books.notices.listing("a", 80) == [rows[3]]
    assert await books.notices.listing(since=datetime.now(UTC) + DAY) == []
    assert await books.notices.listing("nobody") == []
    await books.accounts.delete("a")
    (gone,) = await books.notices.listing(rows[3]["tenant_id"], 80)
    assert (gone["id"], gone["tenant"]) == (rows[3]["id"], None)
    for wrong in ({"limit": 0}, {"limit": 1001}, {"threshold": 90}):
        with pytest.raises(Refused) as caught:
            await books.notices.listing(**wrong)
        assert caught.value.param in wrong


async def test_what_is_near_its_end_is_so_now(books):
    """The spent ones first; neither what a raised budget was nor another period is listed."""
    total = await books.tenant("total", budget=100, budget_period="total")
    far = await books.tenant("far", budget=1000)
    near = await books.tenant("near", {"budget": 50, "name": "k"}, budget=1000)
    raised = await books.tenant("raised", budget=100)
    changed = await books.tenant("changed", budget=100)
    gone = await books.tenant("gone", budget=100)
    for who in (total, far, near, raised, changed, gone):
        await books.charge(who, 45 if who is near else 100)
    await books.charge(far, 90, at=datetime.now(UTC) - DAY)
    await books.charge(near, 1)
    await books.accounts.update("raised", {"budget": 126})
    await books.accounts.update("changed", {"budget_period": "month"})
    await books.accounts.delete("gone")
    rows = await books.notices.current()
    assert [
        (row["tenant"], row["key"], row["threshold"], row["spent"], row["period_start"])
        for row in rows
    ] == [
        ("changed", None, 100, 100, datetime.now(UTC).date().replace(day=1).isoformat()),
        ("total", None, 100, 100, None),
        ("near", "k", 80, 46, datetime.now(UTC).date().isoformat()),
    ]
    assert [row["tenant"] for row in await books.notices.current(2)] == ["changed", "total"]


async def test_what_is_near_its_end_follows_each_change_of_a_budget(books):
    """Each budget is listed once, by its size of now and what is spent of it."""
    who = await books.tenant("acme", budget=10_000)
    await books.charge(who, 104)

    async def current():
        return [(row["threshold"], row["budget"]) for row in await books.notices.current()]

    assert await current() == []
    for budget, listed in ((100, 100), (130, 80), (500, None), (101, 100), (100, 100), (0, None)):
        await books.accounts.update("acme", {"budget": budget})
        assert await current() == ([] if listed is None else [(listed, budget)])
    await books.accounts.update("acme", {"budget": 100})
    await books.accounts.extend("acme", 25, timedelta(hours=1))
    assert await current() == [(80, 125)]
    await books.accounts.update("acme", {"budget": None})
    assert await current() == []


MANY = (
    """
    INSERT INTO gateway.api_keys (id, tenant_id, public_id, hash, budget, budget_period)
    SELECT 'k' || n, t.id, 'p' || n, 'x', 100, 'day'
    FROM generate_series(1, 30000) n, gateway.tenants t
    """,
    """
    INSERT INTO gateway.spend SELECT 'k:' || id, (now() AT TIME ZONE 'UTC')::date - n, 1
    FROM gateway.api_keys, generate_series(0, 1) n
    """,
    """
    INSERT INTO gateway.budget_notices
        (scope, tenant_id, key_id, period, period_start, threshold, budget, spent)
    SELECT 'k:' || id, tenant_id, id, 'day', (now() AT TIME ZONE 'UTC')::date, 80, 100, 1
    FROM gateway.api_keys WHERE budget > 0
    """,
    "ANALYZE",
)


async def test_what_is_near_its_end_is_found_without_a_scan(books):
    """Among many keys, sums and notices every step walks an index."""
    await books.tenant("acme")
    for statement in MANY:
        await books.postgres.fetch(statement)

    async def explained(connection):
        await connection.execute(SETTINGS)
        return await connection.fetch("EXPLAIN (ANALYZE, BUFFERS OFF) " + CURRENT, 100)

    text = "\n".join(row[0] for row in await books.postgres.transact(explained))
    assert not re.findall(r"Seq Scan|Bitmap|Hash", text), text
    read = [int(rows) for rows in re.findall(r"Index.*actual.* rows=(\d+)", text)]
    assert max(read) <= 100, text
    assert len(await books.notices.current(100)) == 100
