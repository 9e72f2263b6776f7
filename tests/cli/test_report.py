"""`trio-gateway usage`, `audit` and `ledger` on a real installation."""

import asyncio
import json

from trio_gateway.clients.postgres import run_once

BOOKED = """
INSERT INTO gateway.ledger (request_id, tenant_id, key_id, model, outcome, prompt_tokens,
    completion_tokens, charged_tokens, started_at, endpoint, status_code, basis, held_tokens,
    duration_ms)
SELECT 'r', tenant_id, id, 'm:latest', 'completed', 3, 4, 7, now(), '/api/chat', 200, 'final', 7, 1
FROM gateway.api_keys
"""
REFUSED = """
INSERT INTO gateway.audit_log (code, status_code, method, path, request_id, tenant_id, count)
SELECT 'endpoint_not_allowed', 403, 'POST', '/api/pull', 'r', id, 9 FROM gateway.tenants
"""


def sql(database, query):
    asyncio.run(run_once(database, query))


def test_usage_is_summed_by_model_key_and_day(cli, database):
    """Names are accepted for tenant and key; nothing used is said in words."""
    assert cli("usage", "--json").json == []
    assert cli("usage").out == "Nothing was used.\n"
    cli("tenant", "create", "acme", "--all-models")
    cli("key", "create", "--tenant", "acme", "--name", "laptop")
    sql(database, BOOKED)
    (row,) = cli("usage", "--tenant", "acme", "--key", "laptop", "--since", "1h", "--json").json
    assert row == {
        "model": "m:latest",
        "requests": 1,
        "failures": 0,
        "prompt_tokens": 3,
        "completion_tokens": 4,
        "charged_tokens": 7,
        "outcomes": {"completed": 1},
    }
    assert cli("usage", "--by", "key", "--json").json[0]["key"] == "laptop"
    assert "day" in cli("usage", "--by", "day", "--json").json[0]
    assert cli("usage", "--by", "tenant", "--json").json[0]["tenant"] == "acme"
    assert cli("usage", "--by", "outcome", "--json").json[0]["outcome"] == "completed"
    assert "outcomes" not in cli("usage", "--by", "outcome").out
    assert "completed 1" in cli("usage").out
    assert cli("usage", "--since", "2099-01-01", "--json").json == []
    cli("usage", "--key", "ghost").refused("there is no key 'ghost'")
    for args in (["usage"], ["audit"], ["audit", "--acts"], ["notices"]):
        for when in ("0001-01-01", "0001-01-01T00:00+05:00", "9999-12-31"):
            cli(*args, "--since", when).refused("--since: must be a time from 1970")


def test_audit_lists_refusals_and_acts(cli, database):
    """What callers were refused, and what operators did, latest first."""
    assert cli("audit").out == "Nothing was refused.\n"
    assert cli("audit", "--acts").out == "Nobody changed anything.\n"
    cli("tenant", "create", "acme", "--all-models")
    sql(database, REFUSED)
    (row,) = cli("audit", "--tenant", "acme", "--since", "1d", "--json").json
    assert (row["code"], row["path"], row["count"]) == ("endpoint_not_allowed", "/api/pull", 9)
    assert "/api/pull" in cli("audit").out
    answer = cli("audit", "--acts", "--limit", "1", "--json")
    assert (answer.json[0]["actor"], answer.json[0]["action"]) == ("cli", "tenant.create")
    assert "--limit shows more" in answer.err
    assert cli("audit", "--since", "none", "--json").json[0]["count"] == 9


def test_the_books_are_compared(cli, database):
    """Books that agree are exit 0; a row without its sums is exit 1, and is shown."""
    cli("tenant", "create", "acme", "--all-models")
    cli("key", "create", "--tenant", "acme")
    found = cli("ledger", "verify", "--json").json
    assert (found["ok"], found["holds_open"], found["differences"]) == (True, 0, [])
    assert "the books agree" in cli("ledger", "verify").out
    sql(database, BOOKED)
    answer = cli("ledger", "verify", "--json")
    assert (answer.code, json.loads(answer.out)["ok"]) == (1, False)
    answer = cli("ledger", "verify")
    assert answer.code == 1
    assert "THE BOOKS DIFFER" in answer.out


def test_acts_are_found_by_what_they_changed(cli):
    """By name or id; what nobody knows is said."""
    made = cli("tenant", "create", "acme", "--all-models", "--json").json
    cli("tenant", "create", "lab", "--all-models")
    for subject in ("acme", made["id"]):
        (act,) = cli("audit", "--acts", "--subject", subject, "--json").json
        assert (act["action"], act["subject"]) == ("tenant.create", made["id"])
    cli("audit", "--acts", "--subject", "ghost").refused("nothing is called 'ghost'")


def test_one_call_is_found_by_its_id(cli, database):
    """`ledger show` prints the row of the x-request-id that the caller saw."""
    cli("tenant", "create", "acme", "--all-models")
    cli("key", "create", "--tenant", "acme", "--name", "laptop")
    sql(database, BOOKED)
    row = cli("ledger", "show", "r", "--json").json
    assert (row["request_id"], row["tenant"], row["key"]) == ("r", "acme", "laptop")
    assert "m:latest" in cli("ledger", "show", "r").out
    cli("ledger", "show", "req_gone").refused("no call of that id is booked")


def test_comparing_the_books_needs_redis(cli, monkeypatch):
    """Redis away or not named: one sentence."""
    monkeypatch.setenv("REDIS_URL", "redis://127.0.0.1:1/0")
    cli("ledger", "verify").refused("Redis cannot be used at 127.0.0.1:1/0")
    monkeypatch.setenv("REDIS_URL", "nonsense")
    cli("ledger", "verify").refused("REDIS_URL: must be a Redis address")
    monkeypatch.delenv("REDIS_URL")
    cli("ledger", "verify").refused("REDIS_URL is not")
