"""Usage, refusals and acts as they are read back."""

from datetime import UTC, datetime, timedelta

import pytest
import trio

from trio_gateway.services.account_rows import NotFound
from trio_gateway.services.accounts import Accounts
from trio_gateway.services.keyring import Keyring
from trio_gateway.services.reports import Reports
from trio_gateway.services.tenant_rows import read_installation_secret

LIMIT = 60
TODAY = datetime(2026, 3, 2, 12, tzinfo=UTC)
YESTERDAY = TODAY - timedelta(days=1)


@pytest.fixture
async def books(postgres):
    """Yield a tenant and a key with three calls, and a fourth of nobody known any more."""
    with trio.fail_after(LIMIT):
        accounts = Accounts(postgres, "test")
        keyring = Keyring(postgres, await read_installation_secret(postgres), "test")
        tenant = await accounts.create("acme", {})
        key = await keyring.issue("acme", {"name": "laptop"})
        ids = (tenant["id"], key["id"])
        calls = [
            (*ids, "a:latest", "completed", 10, 5, 15, TODAY),
            (*ids, "a:latest", "aborted", 10, 1, 11, TODAY),
            (*ids, "b:latest", "completed", 1, 1, 2, YESTERDAY),
            ("ten_gone", "key_gone", "a:latest", "completed", 100, 100, 200, YESTERDAY),
        ]
        for number, call in enumerate(calls):
            await postgres.fetch(
                "INSERT INTO gateway.ledger (request_id, tenant_id, key_id, model, outcome,"
                " prompt_tokens, completion_tokens, charged_tokens, started_at, endpoint,"
                " status_code, basis, held_tokens, duration_ms) VALUES ($1, $2, $3, $4, $5, $6,"
                " $7, $8, $9, '/api/chat', 200, 'final', 0, 1)",
                f"req_{number}",
                *call,
            )
        yield Reports(postgres), ids


def sums(rows, column):
    return {row[column]: (row["requests"], row["charged_tokens"], row["outcomes"]) for row in rows}


async def test_usage_by_model_sums_requests_tokens_and_outcomes(books):
    """Every call is in exactly one group."""
    reports, _ = books
    rows = await reports.usage()
    assert rows[0] == {
        "model": "a:latest",
        "requests": 3,
        "failures": 0,
        "prompt_tokens": 120,
        "completion_tokens": 106,
        "charged_tokens": 226,
        "outcomes": {"aborted": 1, "completed": 2},
    }
    assert sums(rows, "model")["b:latest"] == (1, 2, {"completed": 1})


async def test_usage_by_key_names_the_keys_that_are_still_there(books):
    """A deleted key keeps its sums under its id."""
    reports, (_, key_id) = books
    rows = {row["key_id"]: row for row in await reports.usage("key")}
    assert (rows[key_id]["key"], rows[key_id]["tenant"]) == ("laptop", "acme")
    assert (rows["key_gone"]["key"], rows["key_gone"]["charged_tokens"]) == (None, 200)


async def test_usage_by_tenant_and_outcome_sums_each_call_once(books, postgres):
    """A tenant that is gone keeps its sums under its id; a stream that broke is a failure."""
    reports, (tenant_id, _) = books
    rows = {row["tenant_id"]: row for row in await reports.usage("tenant")}
    assert (rows[tenant_id]["tenant"], rows[tenant_id]["charged_tokens"]) == ("acme", 28)
    assert (rows["ten_gone"]["tenant"], rows["ten_gone"]["charged_tokens"]) == (None, 200)
    assert sums(await reports.usage("outcome"), "outcome") == {
        "aborted": (1, 11, {"aborted": 1}),
        "completed": (3, 217, {"completed": 3}),
    }
    await postgres.fetch("UPDATE gateway.ledger SET outcome = 'lost'")
    (row,) = await reports.usage("outcome")
    assert (row["requests"], row["failures"]) == (4, 4)


async def test_usage_by_day_is_by_utc_day(books):
    """Days are text, in order."""
    reports, _ = books
    assert sums(await reports.usage("day"), "day") == {
        "2026-03-01": (2, 202, {"completed": 2}),
        "2026-03-02": (2, 26, {"aborted": 1, "completed": 1}),
    }


async def test_usage_is_narrowed_by_tenant_key_and_time(books):
    """The conditions hold together; an unknown tenant is said."""
    reports, (tenant_id, key_id) = books
    assert (await reports.usage("day", "acme"))[0]["requests"] == 1
    assert (await reports.usage("day", tenant_id, key_id, TODAY))[0]["requests"] == 2
    assert await reports.usage(key_id="key_none") == []
    with pytest.raises(NotFound):
        await reports.usage(tenant="ghost")


async def test_refusals_come_latest_first_and_by_tenant(books, postgres):
    """By a tenant's name, its id, or the id of one that is gone."""
    reports, (tenant_id, _) = books
    for at, tenant in ((YESTERDAY, tenant_id), (TODAY, "ten_gone"), (TODAY, None)):
        await postgres.fetch(
            "INSERT INTO gateway.audit_log (at, last_at, code, status_code, method, path,"
            " tenant_id, request_id) VALUES ($1, $1, 'c', 401, 'GET', '/', $2, 'r')",
            at,
            tenant,
        )
    assert [row["tenant_id"] for row in await reports.refusals()] == [None, "ten_gone", tenant_id]
    assert len(await reports.refusals(since=TODAY)) == 2
    assert len(await reports.refusals(limit=1)) == 1
    for name in ("acme", tenant_id):
        assert [row["at"] for row in await reports.refusals(tenant=name)] == [YESTERDAY]
    assert len(await reports.refusals(tenant="ten_gone")) == 1


async def test_acts_come_latest_first_with_before_and_after(books):
    """The rows as they were, as JSON values and not as text."""
    reports, _ = books
    issued, created = await reports.acts()
    assert (issued["action"], created["action"]) == ("key.create", "tenant.create")
    assert created["before"] is None
    assert created["after"]["name"] == "acme"
    assert await reports.acts(since=datetime.now(UTC) + timedelta(hours=1)) == []
    assert len(await reports.acts(limit=1)) == 1


async def test_acts_are_narrowed_by_who_and_what(books, postgres):
    """Together with each other and the rest; what was seen is listed once each, by name."""
    reports, (tenant_id, key_id) = books
    await Accounts(postgres, "eve").disable("acme")
    await Accounts(postgres, "eve").enable("acme")
    assert [act["action"] for act in await reports.acts(actor="eve")] == [
        "tenant.enable",
        "tenant.disable",
    ]
    (act,) = await reports.acts(actor="eve", action="tenant.disable", subject=tenant_id)
    assert act["after"]["disabled_at"] is not None
    assert await reports.acts(actor="eve", subject=key_id) == []
    assert await reports.acts(actor="e\0e", action="\ud800") == []
    assert await reports.actors() == ["eve", "test"]
    assert await reports.actions() == [
        "key.create",
        "tenant.create",
        "tenant.disable",
        "tenant.enable",
    ]
