"""Lists page by page: each row once, in order, whatever the size of the pages."""

import random
from datetime import UTC, datetime, timedelta

import pytest

from tests.services.turning import turned
from trio_gateway.services import ledger_slots
from trio_gateway.services.account_rows import Refused
from trio_gateway.services.accounts import KEYS_COUNTED, Accounts
from trio_gateway.services.keyring import Keyring
from trio_gateway.services.ledger_pages import LedgerFilter, LedgerPages
from trio_gateway.services.reports import Reports
from trio_gateway.services.tenant_rows import read_installation_secret

NOON = datetime(2026, 3, 2, 12, tzinfo=UTC)
DAY = timedelta(days=1)
ROW = """
INSERT INTO gateway.ledger (request_id, tenant_id, key_id, model, outcome, batch_id, started_at,
    endpoint, status_code, basis, prompt_tokens, completion_tokens, charged_tokens, held_tokens,
    duration_ms)
SELECT request_id, tenant_id, key_id, model, outcome, batch_id, started_at, '/api/chat', 200,
    'final', 1, 1, 2, 0, 1
FROM unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::text[], $6::text[],
    $7::timestamptz[]) AS u (request_id, tenant_id, key_id, model, outcome, batch_id, started_at)
"""


def pages(ask, place, first=None):
    return turned(ask, place, 3, first)


@pytest.fixture(params=["long ago", "of late"])
async def ledger(postgres, request, monkeypatch):
    """Yield 200 rows over ten days, some at one instant, with sums by the hour or past these."""
    some = random.Random(4)
    if request.param == "of late":
        monkeypatch.setattr(ledger_slots, "HOURS_KEPT", datetime.now(UTC) - NOON + 11 * DAY)
    rows = [
        (
            f"req_{n:03}",
            some.choice(["ten_a", "ten_b"]),
            some.choice(["key_a", "key_b"]),
            some.choice(["m:1", "m:2", "rare:1"] if n % 40 == 0 else ["m:1", "m:2"]),
            some.choice(["completed", "aborted"]),
            some.choice([None, None, "batch_1"]),
            NOON - timedelta(hours=some.randrange(240)),
        )
        for n in range(200)
    ]
    await postgres.fetch(ROW, *map(list, zip(*rows, strict=True)))
    if request.param == "long ago":
        await postgres.fetch("DELETE FROM gateway.usage_hourly")
        await postgres.fetch("DELETE FROM gateway.usage_totals WHERE unit = 'hour'")
    yield LedgerPages(postgres), sorted(rows, key=lambda row: (row[6], row[0]), reverse=True)


@pytest.mark.parametrize(
    "wanted",
    [
        {},
        {"tenant_id": "ten_a"},
        {"request_id": "req_007"},
        {"request_id": "req_007", "outcome": "aborted", "since": NOON - timedelta(days=10)},
        {"key_id": "key_b", "model": "m:1"},
        {"batch_id": "batch_1", "outcome": "aborted"},
        {"model": "rare:1"},
        {"model": "none:1"},
        {"model": "m:2", "outcome": "completed", "tenant_id": "ten_b"},
        {"since": NOON - timedelta(days=4), "until": NOON - timedelta(days=1, hours=3)},
        {"outcome": "aborted", "since": NOON - timedelta(days=4), "until": NOON - timedelta(4 / 3)},
        {"outcome": "completed", "since": NOON - timedelta(days=9, minutes=20)},
        {"model": "m:1", "outcome": "aborted", "since": NOON - timedelta(days=9)},
        {"model": "rare:1", "tenant_id": "ten_a", "since": NOON - timedelta(days=9, minutes=20)},
        {"outcome": "aborted", "tenant_id": "ten_b", "until": NOON - timedelta(days=3, minutes=1)},
    ],
)
async def test_pages_of_the_ledger_hold_each_wanted_row_once(ledger, wanted):
    """Whatever is filtered, the pages together are the rows, newest first."""
    book, rows = ledger
    names = ("request_id", "tenant_id", "key_id", "model", "outcome", "batch_id")
    expected = [
        row[0]
        for row in rows
        if all(row[names.index(name)] == value for name, value in wanted.items() if name in names)
        and row[6] >= wanted.get("since", row[6])
        and row[6] < wanted.get("until", row[6] + timedelta(1))
    ]
    found = await pages(
        lambda at: book.listing(LedgerFilter(**wanted), 3, at),
        lambda row: (row["started_at"], row["request_id"]),
    )
    assert [row["request_id"] for row in found] == expected
    assert bool(expected) is (wanted.get("model") != "none:1")


async def test_sums_by_key_are_those_of_the_rows(ledger):
    """Each key has its rows, the greatest first, within the bounds alone."""
    book, rows = ledger
    since = NOON - timedelta(days=5)
    found = await book.by_key(LedgerFilter(tenant_id="ten_a", since=since))
    counted = {row["key_id"]: (row["requests"], row["charged_tokens"]) for row in found}
    mine = [row[2] for row in rows if row[1] == "ten_a" and row[6] >= since]
    assert counted == {key: (mine.count(key), 2 * mine.count(key)) for key in set(mine)}
    assert found[0]["charged_tokens"] == max(charged for _, charged in counted.values())


async def test_pages_of_tenants_and_keys_hold_each_once_in_order(postgres):
    """Tenants by name, keys by tenant and age, those of one tenant or of all, searched or not."""
    accounts = Accounts(postgres, "test")
    keyring = Keyring(postgres, await read_installation_secret(postgres), "test")
    made = []
    for name in ("b", "a", "d", "c"):
        await accounts.create(name, {})
        made += [(name, (await keyring.issue(name, {"name": f"k{n}"}))["id"]) for n in range(4)]
    ordered = [key for name, key in sorted(made, key=lambda pair: pair[0])]
    found = await pages(lambda at: accounts.listing("", 3, at), lambda row: row["name"], "")
    assert [row["name"] for row in found] == ["a", "b", "c", "d"]
    assert [row["keys"] for row in found] == [4, 4, 4, 4]
    for tenant, match, expected in (
        (None, "", ordered),
        ("c", "", [key for name, key in made if name == "c"]),
        (None, "K2", [key for number, key in enumerate(ordered) if number % 4 == 2]),
    ):
        keys = await pages(
            lambda at, tenant=tenant, match=match: keyring.listing(tenant, match, 3, at),
            lambda row: row["id"],
        )
        assert [row["id"] for row in keys] == expected
    with pytest.raises(Refused) as caught:
        await keyring.listing(after="key_gone")
    assert caught.value.param == "after"


async def test_the_count_of_keys_in_a_list_is_bounded(postgres):
    """A tenant with very many keys costs a list no more than one with a thousand."""
    await Accounts(postgres, "test").create("acme", {})
    await postgres.fetch(
        "INSERT INTO gateway.api_keys (id, tenant_id, public_id, hash) SELECT n, t.id, n, ''"
        " FROM gateway.tenants t, generate_series(1, $1) n",
        KEYS_COUNTED + 5,
    )
    (row,) = await Accounts(postgres, "test").listing()
    assert row["keys"] == KEYS_COUNTED


async def test_pages_of_acts_and_refusals_hold_each_once_the_latest_first(postgres):
    """By id and by time, of one subject or tenant or of all."""
    await postgres.fetch(
        "INSERT INTO gateway.admin_events (at, actor, action, subject) SELECT"
        " $1::timestamptz + n * interval '1 minute', 'a', 'b', 's' || n % 2"
        " FROM generate_series(1, 10) n",
        NOON,
    )
    await postgres.fetch(
        "INSERT INTO gateway.audit_log (at, last_at, code, status_code, method, path, tenant_id,"
        " request_id) SELECT $1::timestamptz + n / 3 * interval '1 minute',"
        " $1::timestamptz + n * interval '1 minute', 'c', 401, 'GET', '/', 't' || n % 2, 'r' || n"
        " FROM generate_series(1, 10) n",
        NOON,
    )
    reports = Reports(postgres)
    five = NOON + timedelta(minutes=5)
    acts = await pages(lambda at: reports.acts(None, 3, at), lambda row: row["id"])
    assert [row["at"].minute for row in acts] == list(range(10, 0, -1))
    odd = await pages(lambda at: reports.acts(five, 3, at, "s1"), lambda row: row["id"])
    assert [row["at"].minute for row in odd] == [9, 7, 5]
    refusals = await pages(lambda at: reports.refusals(None, None, 3, at), lambda row: row["id"])
    assert [row["last_at"].minute for row in refusals] == list(range(10, 0, -1))
    even = await pages(lambda at: reports.refusals(five, "t0", 3, at), lambda row: row["id"])
    assert [row["last_at"].minute for row in even] == [10, 8, 6]
