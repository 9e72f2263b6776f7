"""`trio-gateway webhook ...`, `notices`, and the extending of budgets, on a real installation."""

import re
from datetime import UTC, datetime, timedelta

import pytest

from tests.account import caller, past_row
from trio_gateway.clients.bridge import open_bridge
from trio_gateway.clients.postgres import open_postgres
from trio_gateway.services.ledger.ledger import Ledger

URL = "https://hooks.example.com/budgets"


@pytest.fixture
def hooks(cli, monkeypatch):
    """The command line, with one host on the list, and a tenant `acme`."""
    monkeypatch.setenv("TRIO_GATEWAY_WEBHOOK_HOSTS", "hooks.example.com")
    cli("tenant", "create", "acme", "--budget", "100", "--budget-period", "day")
    return cli


def spend(url, tenant, units):
    """Write a ledger row of a tenant."""
    import trio  # noqa: PLC0415 - the test itself is synchronous, as the commands are

    async def write():
        async with open_bridge() as bridge, open_postgres(bridge, url) as postgres:
            now = int(datetime.now(UTC).timestamp() * 1_000_000)
            who = caller(tenant_id=tenant, key_id="gone")
            await Ledger(postgres).write([past_row(who, units, now)])

    trio.run(write)


def test_a_webhook_lives_from_create_to_delete(hooks):
    """Create, list, show, update, disable, enable, rotate, delete; the secret is seen twice."""
    made = hooks("webhook", "create", "ops", "--url", URL, "--json").json
    assert list(made)[:3] == ["id", "name", "secret"]
    assert (made["state"], made["tenant"]) == ("active", None)
    (listed,) = hooks("webhook", "list", "--json").json
    assert "secret" not in listed
    shown = hooks("webhook", "show", made["id"], "--json").json
    assert (shown["name"], shown["deliveries"]) == ("ops", [])
    changed = hooks(
        *("webhook", "update", "ops", "--url", URL + "/2", "--tenant", "acme", "--json")
    ).json
    assert (changed["url"], changed["tenant"]) == (URL + "/2", "acme")
    assert hooks("webhook", "update", "ops", "--all-tenants", "--json").json["tenant"] is None
    assert hooks("webhook", "disable", "ops", "--json").json["state"] == "disabled"
    hooks("webhook", "test", "ops").refused("disabled")
    assert hooks("webhook", "enable", "ops", "--json").json["state"] == "active"
    rotated = hooks("webhook", "rotate", "ops", "--json").json
    assert rotated["secret"] != made["secret"]
    gone = hooks("webhook", "delete", "ops", "--json").json
    assert gone == {"id": made["id"], "name": "ops", "deleted": True}
    assert hooks("webhook", "list", "--json").json == []


def test_people_get_sentences_and_tables(hooks):
    """The secret once, and what to do next."""
    assert "There is no webhook" in hooks("webhook", "list").out
    answer = hooks("webhook", "create", "ops", "--url", URL)
    (secret,) = [word for word in answer.out.split() if word.startswith("whsec_")]
    assert "this once" in answer.out
    for command in ("list", "show ops", "update ops --tenant acme", "disable ops", "enable ops"):
        assert secret not in hooks("webhook", *command.split()).out
    table = hooks("webhook", "list").out
    assert all(word in table for word in ("ops", "active", "acme", URL))
    assert "Nothing was sent to it yet" in hooks("webhook", "show", "ops").out
    assert "whsec_" in hooks("webhook", "rotate", "ops").out
    assert hooks("webhook", "delete", "ops").out == "Webhook ops is gone.\n"


def test_a_test_message_without_a_running_gateway_waits(hooks):
    """The answer says so, and where to look later."""
    hooks("webhook", "create", "ops", "--url", URL)
    answer = hooks("webhook", "test", "ops", "--wait", "0")
    assert answer.code == 0
    assert "waits to be sent" in answer.out
    assert "webhook show" in answer.err
    assert hooks("webhook", "show", "ops", "--json").json["waiting"] == 1


def test_refusals_of_webhooks_are_one_line_that_names_the_option(hooks, monkeypatch):
    """Hosts that are not on the list, names, tenants, and options that exclude each other."""
    refused = hooks("webhook", "create", "ops", "--url", "https://evil.example/")
    refused.refused("--url:", "TRIO_GATEWAY_WEBHOOK_HOSTS")
    hooks("webhook", "create", "ops", "--url", "http://hooks.example.com/").refused("--url:")
    hooks("webhook", "create", "a b", "--url", URL).refused("a webhook's name")
    hooks("webhook", "create", "ops", "--url", URL, "--tenant", "ghost").refused("no tenant")
    hooks("webhook", "create", "ops", "--url", URL)
    hooks("webhook", "create", "ops", "--url", URL).refused("named ops already")
    hooks("webhook", "update", "ops").refused("something to change", code=2)
    both = ("--tenant", "acme", "--all-tenants")
    hooks("webhook", "update", "ops", *both).refused("exclude each other", code=2)
    for verb in ("show", "delete", "rotate", "test", "disable", "enable"):
        hooks("webhook", verb, "ghost").refused("there is no webhook 'ghost'")
    monkeypatch.delenv("TRIO_GATEWAY_WEBHOOK_HOSTS")
    hooks("webhook", "test", "ops").refused("--url:", "TRIO_GATEWAY_WEBHOOK_HOSTS")


@pytest.mark.usefixtures("same_day")
def test_notices_are_listed_and_paged(hooks, database):
    """What was reached, and what is near its end now."""
    assert "There is no notice" in hooks("notices").out
    assert "No budget is near its end" in hooks("notices", "--current").out
    tenant = hooks("tenant", "show", "acme", "--json").json["id"]
    spend(database, tenant, 100)
    rows = hooks("notices", "--json").json
    assert [(row["tenant"], row["threshold"]) for row in rows] == [("acme", 100), ("acme", 80)]
    assert rows[0]["period_start"] == datetime.now(UTC).date().isoformat()
    (first,) = hooks("notices", "--limit", "1", "--json").json
    assert hooks("notices", "--before", str(first["id"]), "--json").json == rows[1:]
    assert hooks("notices", "--tenant", "acme", "--threshold", "80", "--json").json == rows[1:]
    assert len(hooks("notices", "--since", "1h", "--json").json) == 2
    assert hooks("notices", "--since", "2100-01-01", "--json").json == []
    (near,) = hooks("notices", "--current", "--json").json
    assert (near["id"], near["spent"]) == (rows[0]["id"], 100)
    table = hooks("notices").out
    assert all(word in table for word in ("acme", "100", "80", "day"))
    hooks("notices", "--current", "--tenant", "acme").refused("no other condition", code=2)
    hooks("notices", "--limit", "1001").refused("--limit", code=2)


def test_budgets_are_extended_and_given_back(hooks):
    """A span or an instant; shown with its end, and ended."""
    hooks("key", "create", "--tenant", "acme", "--name", "k", "--budget", "50")
    row = hooks("tenant", "extend", "acme", "--tokens", "20", "--until", "2d", "--json").json
    assert (row["budget"], row["effective_budget"], row["budget_extra"]) == (100, 120, 20)
    left = datetime.fromisoformat(row["budget_extra_until"]) - datetime.now(UTC)
    assert timedelta(days=1, hours=23) < left <= timedelta(days=2)
    shown = hooks("tenant", "show", "acme").out
    assert re.search(r"^effective_budget +120\s*$", shown, re.MULTILINE)
    until = ("--until", "2099-12-31T18:00")
    answer = hooks("key", "extend", "k", "--tenant", "acme", "--tokens", "5", *until)
    assert "may spend 55 tokens until 2099-12-31 18:00:00Z." in answer.out
    assert hooks("key", "show", "k", "--json").json["effective_budget"] == 55
    assert "its own budget again" in hooks("key", "extend", "k", "--end").out
    assert hooks("tenant", "extend", "acme", "--end", "--json").json["effective_budget"] == 100


def test_a_bad_extension_is_one_line_that_names_the_option(hooks):
    """No end, no tokens, the past, and a budget that is unlimited."""
    extend = ("tenant", "extend", "acme")
    hooks(*extend).refused("--tokens and --until", code=2)
    hooks(*extend, "--tokens", "5").refused("--tokens and --until", code=2)
    hooks(*extend, "--end", "--tokens", "5").refused("--end excludes", code=2)
    hooks(*extend, "--tokens", "0", "--until", "1h").refused("--tokens", code=2)
    hooks(*extend, "--tokens", "5", "--until", "never").refused("must end", code=2)
    hooks(*extend, "--tokens", "5", "--until", "soon").refused("--until", code=2)
    hooks(*extend, "--tokens", "5", "--until", "2020-01-01").refused("--until:", "future")
    most = str(2**63 - 1)
    hooks(*extend, "--tokens", most, "--until", "1h").refused("--tokens:")
    hooks("tenant", "update", "acme", "--budget", "none")
    hooks(*extend, "--tokens", "5", "--until", "1h").refused("--budget:", "unlimited")
    hooks("tenant", "extend", "ghost", "--end").refused("no tenant")
