"""The admin API's books: usage, ledger and exports, files, batches, audit, admins, webhooks."""

from __future__ import annotations

import csv
import io
import json
import shlex
from datetime import UTC, datetime, timedelta

import pytest
import trio

from tests.integration.admin_world import open_admin
from tests.integration.batching import asks, batcher, jsonl
from tests.integration.test_admin_api import chat, done, some
from tests.raw_http import connect
from tests.test_docs import README

NDJSON = "application/x-ndjson"
HOOK = "https://hooks.example/budgets"
INJECTIONS = (
    "=1+1",
    "+1",
    "-1",
    "@SUM(A1)",
    "\tx",
    "\rx",
    '=cmd|" /C calc"!A0',
    'a,"b"\n',
    "plain",
)
ROWS = """
INSERT INTO gateway.ledger (request_id, tenant_id, key_id, model, outcome, started_at, endpoint,
    status_code, basis, prompt_tokens, completion_tokens, charged_tokens, held_tokens, duration_ms,
    backend)
SELECT 'req_' || lpad(n::text, 6, '0'), 'ten_gone', 'key_' || n % 3, 'm:' || n % 2, 'completed',
    $2::timestamptz + n * interval '1 second', '/api/chat', 200, 'final', 1, 2, 3, 4, 5.4996,
    ($3::text[])[1 + n % array_length($3::text[], 1)]
FROM generate_series(1, $1) n
"""

# One call of each lab in each of 120 hours; the first two cost the most.
SPREAD = """
INSERT INTO gateway.ledger (request_id, tenant_id, key_id, model, outcome, started_at, endpoint,
    status_code, basis, prompt_tokens, completion_tokens, charged_tokens, held_tokens, duration_ms)
SELECT 'req_' || t.name || n, t.id, 'key_1', 'm:1', 'completed',
    $1::timestamptz + n * interval '1 hour', '/api/chat', 200, 'final', 1, 2,
    CASE WHEN t.name < 'lab02' THEN 9 ELSE 3 END, 4, 5
FROM generate_series(0, 119) n, gateway.tenants t WHERE t.name LIKE 'lab%'
"""


@pytest.fixture
async def admin(world):
    async with open_admin(world, webhook_hosts="hooks.example") as opened:
        yield opened


async def export(admin, path, accept):
    """Return what an export holds, and its type."""
    answer = await admin.ask("GET", path, headers={"accept": accept})
    assert answer.status_code == 200, answer.text
    return answer


async def test_usage_is_what_was_used(admin):
    """By model, tenant and outcome, by the hour and the day, in all, and by key."""
    other = await admin.world.tenant_with_key("lab")
    for key in (admin.world.key, admin.world.key, other):
        assert (await chat(admin, key)).status_code == 200
    rows = await admin.world.ledger()
    charged = sum(row["charged_tokens"] for row in rows)
    for by, unit in (("model", "day"), ("tenant", "hour"), ("outcome", "day")):
        found = (await done(admin, "GET", f"/usage?by={by}&unit={unit}"))["data"]
        assert sum(row["charged_tokens"] for row in found) == charged
        assert sum(row["requests"] for row in found) == 3
    totals = await done(admin, "GET", "/usage/totals?tenant=lab", role="viewer")
    assert (totals["requests"], totals["outcomes"]) == (1, {"completed": 1})
    (lab,) = (await done(admin, "GET", "/usage?by=tenant&tenant=lab"))["data"]
    assert (lab["label"], lab["requests"]) == ("lab", 1)
    (keys,) = (await done(admin, "GET", "/usage/keys?tenant=acme"))["data"]
    assert (keys["key_id"], keys["tenant"]) == (admin.world.key["id"], "acme")
    assert keys["requests"] == 2
    text = (await export(admin, "/usage?by=tenant", "text/csv")).text
    assert {row["label"] for row in csv.DictReader(io.StringIO(text))} == {"acme", "lab"}
    assert text.startswith("at,name,label,requests,failures,")
    text = (await export(admin, "/usage/keys?tenant=lab", "text/csv")).text
    assert text.startswith("key_id,key,tenant_id,tenant,requests,failures,")


async def test_an_export_of_usage_has_everybody_and_a_list_names_the_rest(admin):
    """However many tenants, hours and days there are; what is left out of a list is all others."""
    tenants = [f"lab{n:02}" for n in range(60)]
    for name in tenants:
        await admin.world.accounts.create(name, {"all_models": True})
    now = datetime.now(UTC)
    await admin.world.postgres.fetch(SPREAD, now - timedelta(days=5))
    for unit, slots in (("day", 5), ("hour", 120)):
        since = f"{now - timedelta(days=6):%Y-%m-%dT%H:00:00Z}"
        query = f"/usage?by=tenant&unit={unit}&since={since}"
        text = (await export(admin, query + "&most=1", "text/csv")).text
        rows = list(csv.DictReader(io.StringIO(text)))
        assert {row["label"] for row in rows} == set(tenants)
        assert len({(row["at"], row["name"]) for row in rows}) == len(rows)
        assert [row["at"] for row in rows] == sorted(row["at"] for row in rows)
        assert slots <= len({row["at"] for row in rows}) <= slots + 1
        assert sum(int(row["requests"]) for row in rows) == 120 * len(tenants)
        listed = (await done(admin, "GET", query + "&most=2"))["data"]
        assert {row["label"] for row in listed} == {"lab00", "lab01", "all others"}
        assert sum(row["requests"] for row in listed) == 120 * len(tenants)
        assert {row["name"] is None for row in listed if row["label"] == "all others"} == {True}


async def test_the_ledger_is_paged_filtered_and_each_call_is_in_it_once(admin):
    """Newest first, by cursors that nobody has to understand."""
    since = datetime.now(UTC) - timedelta(days=1)
    await admin.world.postgres.fetch(ROWS, 25, since, ["b"])
    found, cursor = [], ""
    while True:
        page = await done(admin, "GET", f"/ledger?limit=10&tenant=ten_gone{cursor}")
        found += page["data"]
        if page["next"] is None:
            break
        cursor = f"&cursor={page['next']}"
    assert [row["request_id"] for row in found] == [f"req_{n:06}" for n in range(25, 0, -1)]
    for query, count in (
        ("key=key_1", 9),
        ("request_id=req_000007", 1),
        ("request_id=req_000007&outcome=completed&model=m:1", 1),
        ("request_id=req_7", 0),
        ("model=M:1", 13),
        ("outcome=completed", 25),
        ("outcome=lost", 0),
        ("batch_id=batch_x", 0),
        (f"since={(since + timedelta(seconds=21)):%Y-%m-%dT%H:%M:%S.%fZ}", 5),
        (f"until={(since + timedelta(seconds=21)):%Y-%m-%dT%H:%M:%S.%fZ}", 20),
    ):
        rows = (await done(admin, "GET", f"/ledger?limit=100&{query}"))["data"]
        assert len(rows) == count, query


async def test_exports_hold_every_row_and_no_formula(admin):
    """5,000 rows as CSV (RFC 4180) and as JSON lines: the same, and no cell is a formula."""
    since = datetime.now(UTC) - timedelta(days=1)
    await admin.world.postgres.fetch(ROWS, 5000, since, list(INJECTIONS))
    text = (await export(admin, "/ledger", "text/csv")).text
    assert text.count("\r\n") >= 5001
    table = list(csv.DictReader(io.StringIO(text, newline="")))
    lines = (await export(admin, "/ledger?format=jsonl", "*/*")).text.splitlines()
    objects = [json.loads(line) for line in lines]
    assert [row["request_id"] for row in table] == [each["request_id"] for each in objects]
    assert len({row["request_id"] for row in table}) == 5000
    assert {each["backend"] for each in objects} == set(INJECTIONS)
    for row, each in zip(table, objects, strict=True):
        cell, value = row["backend"], each["backend"]
        assert cell == (value if value in {"plain", 'a,"b"\n'} else f"'{value}")
        assert not any(cell.startswith(tuple("=+-@\t\r\n")) for cell in row.values())
        assert (int(row["charged_tokens"]), float(row["duration_ms"])) == (3, 5.5)
        assert row["tenant"] == ""
    named = await export(admin, "/ledger", NDJSON)
    assert (named.text.splitlines(), named.headers["content-type"]) == (lines, NDJSON)
    nothing = (await export(admin, "/ledger?outcome=lost", "text/csv")).text
    assert nothing.splitlines() == [text.split("\r\n", 1)[0]]
    assert (await export(admin, "/ledger?outcome=lost&format=jsonl", "*/*")).text == ""


async def test_an_export_that_breaks_does_not_look_whole(admin):
    """PostgreSQL goes away under it: the connection ends without the end of the body."""
    since = datetime.now(UTC) - timedelta(days=1)
    await admin.world.postgres.fetch(ROWS, 60_000, since, ["b"])
    async with connect(admin.port) as client:
        await client.send(
            b"GET /admin/v1/ledger?format=csv HTTP/1.1\r\nHost: localhost\r\nAuthorization:"
            b" Bearer " + (await admin.token()).encode() + b"\r\n\r\n"
        )
        received = await client.until(b"req_059000")
        await admin.world.postgres.fetch("ALTER TABLE gateway.ledger RENAME TO hidden")
        received += await client.closed()
    assert b"200" in received.split(b"\r\n", 1)[0]
    assert not received.endswith(b"0\r\n\r\n")
    assert received.count(b"req_") < 60_000


async def test_files_and_batches_of_every_tenant_are_seen_and_ended(admin):
    """Listed, shown, read on record, cancelled and deleted."""
    work = batcher(admin.world)
    first = await work.begin(asks(3))
    await work.ended(first)
    (batch,) = (await done(admin, "GET", "/batches?tenant=acme&status=completed"))["data"]
    assert (batch["id"], batch["tenant"], batch["completed"]) == (first, "acme", 3)
    assert batch == await done(admin, "GET", f"/batches/{first}", role="viewer")
    assert (await admin.ask("POST", f"/batches/{first}/cancel")).status_code == 409
    files = (await done(admin, "GET", "/files?tenant=acme"))["data"]
    page = await done(admin, "GET", "/files?limit=1")
    rest = await done(admin, "GET", f"/files?limit=1&cursor={page['next']}")
    assert [page["data"][0], rest["data"][0]] == files
    output = batch["output_file_id"]
    content = await admin.ask("GET", f"/files/{output}/content")
    assert content.content == await work.content(output)
    assert content.headers["content-disposition"].startswith("attachment")
    (act,) = (await done(admin, "GET", f"/audit/acts?subject={output}"))["data"]
    assert (act["actor"], act["action"]) == ("admin:admin", "file.read")
    assert (await done(admin, "DELETE", f"/files/{output}"))["deleted"] is True
    assert (await admin.ask("GET", f"/files/{output}")).status_code == 404


async def test_an_open_batch_is_cancelled(admin):
    """It is on record who did it."""
    work = batcher(admin.world)
    await done(admin, "PATCH", "/tenants/acme", {"requests_per_minute": 0})
    file = await work.upload(jsonl(asks(2)))
    batch = (await work.create(file))["id"]
    cancelled = await done(admin, "POST", f"/batches/{batch}/cancel")
    assert cancelled["status"] in {"cancelling", "cancelled"}
    (act,) = (await done(admin, "GET", f"/audit/acts?subject={batch}"))["data"]
    assert (act["actor"], act["action"]) == ("admin:admin", "batch.cancel")


async def test_acts_and_refusals_are_read_back_page_by_page(admin):
    """Who changed what, before and after; and what callers were refused."""
    for budget in (1, 2, 3):
        await done(admin, "PATCH", "/tenants/acme", {"budget": budget})
    acme = (await done(admin, "GET", "/tenants/acme"))["id"]
    page = await done(admin, "GET", f"/audit/acts?subject={acme}&limit=2")
    assert [act["after"]["budget"] for act in page["data"]] == [3, 2]
    assert [act["before"]["budget"] for act in page["data"]] == [2, 1]
    rest = await done(admin, "GET", f"/audit/acts?subject={acme}&cursor={page['next']}")
    assert [act["action"] for act in rest["data"]] == ["tenant.update", "tenant.create"]
    mine = f"/audit/acts?subject={acme}&actor=admin:admin&action=tenant.update"
    assert len((await done(admin, "GET", mine))["data"]) == 3
    for nobody in ("actor=nobody", "action=key.revoke"):
        assert (await done(admin, "GET", f"/audit/acts?{nobody}"))["data"] == []
    await admin.world.client.get("/api/pull")
    found = await some(admin, "/audit/refusals")
    assert found[0]["code"] == "endpoint_not_allowed"
    assert (await done(admin, "GET", "/audit/refusals?tenant=acme"))["data"] == []


async def test_admins_are_made_changed_and_removed(admin):
    """A token is seen once; roles, rotation and removal hold from the next request on."""
    made = await done(admin, "POST", "/admins", {"name": "ada", "role": "viewer"}, 201)
    ada = {"authorization": f"Bearer {made['token']}"}

    async def status_of(headers):
        return (await admin.client.get("/admin/v1/status", headers=headers)).status_code

    assert await status_of(ada) == 200
    assert "token" not in await done(admin, "GET", "/admins/ada")
    listed = (await admin.ask("GET", "/admins")).text
    assert made["token"] not in listed
    assert "lookup" not in listed
    assert (await done(admin, "PATCH", "/admins/ada", {"role": "metrics"}))["role"] == "metrics"
    assert await status_of(ada) == 403
    await done(admin, "PATCH", "/admins/ada", {"role": "viewer"})
    rotated = await done(admin, "POST", "/admins/ada/rotate")
    assert await status_of(ada) == 401
    ada = {"authorization": f"Bearer {rotated['token']}"}
    for act, expected in (("disable", 401), ("enable", 200)):
        await done(admin, "POST", f"/admins/ada/{act}")
        assert await status_of(ada) == expected
    await done(admin, "DELETE", "/admins/ada")
    assert await status_of(ada) == 401
    late = {"name": "late", "role": "admin", "expires_at": "2099-01-01T00:00:00Z"}
    assert (await done(admin, "POST", "/admins", late, 201))["state"] == "active"
    assert (await admin.ask("POST", "/admins", late)).status_code == 409


async def test_the_last_admin_cannot_be_locked_out_from_here(admin):
    """Not disabled, not demoted, not deleted, until there is another who may change."""
    await done(admin, "POST", "/admins", {"name": "viewer", "role": "viewer"}, 201)
    acts = (
        ("POST", "/admins/admin/disable", None),
        ("PATCH", "/admins/admin", {"role": "viewer"}),
        ("DELETE", "/admins/admin", None),
    )
    for act in acts:
        refused = await admin.ask(*act)
        assert (refused.status_code, refused.json()["error"]["code"]) == (409, "conflict")
        assert "last active admin" in refused.json()["error"]["message"]
    assert (await done(admin, "GET", "/admins/admin"))["state"] == "active"
    await done(admin, "POST", "/admins", {"name": "ada", "role": "admin"}, 201)
    await done(admin, *acts[0])


async def test_two_admins_who_lock_each_other_out_at_once_leave_one(admin):
    """Whoever comes second is refused, however close they are."""
    ada = await done(admin, "POST", "/admins", {"name": "ada", "role": "admin"}, 201)
    bearers = {"ada": await admin.auth(), "admin": {"authorization": f"Bearer {ada['token']}"}}

    async def lock_out(name, codes):
        path = f"/admin/v1/admins/{name}/disable"
        codes.append((await admin.client.post(path, headers=bearers[name])).status_code)

    for _ in range(5):
        codes: list[int] = []
        async with trio.open_nursery() as nursery:
            nursery.start_soon(lock_out, "ada", codes)
            nursery.start_soon(lock_out, "admin", codes)
        assert sorted(codes) in ([200, 409], [200, 401]), codes
        for name in bearers:
            await admin.admins.enable(name)


async def test_with_a_token_in_the_settings_the_last_admin_may_go(admin):
    """Whoever has that token can make another."""
    async with open_admin(admin.world, admin_token="of-the-settings") as other:
        await admin.token()
        bearer = {"authorization": "Bearer of-the-settings"}
        gone = await other.client.delete("/admin/v1/admins/admin", headers=bearer)
        assert gone.status_code == 200, gone.text
        assert (await other.client.get("/admin/v1/admins", headers=bearer)).json()["data"] == []


async def test_sessions_are_listed_and_ended(admin):
    """What is listed opens nothing; ended, it is over, and on record."""
    officer = await admin.office.admins.prove(await admin.token())
    secret = await admin.office.sessions.open(officer, "10.0.0.1")
    answer = await admin.ask("GET", "/sessions")
    (session,) = answer.json()["data"]
    assert (session["name"], session["client"]) == ("admin", "10.0.0.1")
    assert secret not in answer.text
    await done(admin, "DELETE", f"/sessions/{session['id']}")
    assert await admin.office.sessions.find(secret) is None
    assert (await admin.ask("DELETE", f"/sessions/{session['id']}")).status_code == 404
    (act,) = (await done(admin, "GET", "/audit/acts?limit=1"))["data"]
    assert (act["action"], act["before"]["client"]) == ("session.end", "10.0.0.1")


async def test_webhooks_are_made_changed_and_removed(admin):
    """A secret is seen once; a host that is not listed is refused by name."""
    wanted = {"name": "hook", "url": HOOK, "tenant": "acme"}
    made = await done(admin, "POST", "/webhooks", wanted, 201)
    assert made["tenant"] == "acme"
    shown = await admin.ask("GET", "/webhooks/hook")
    assert made["secret"] not in shown.text
    assert (await admin.ask("POST", "/webhooks", wanted)).status_code == 409
    for method, path in (("POST", "/webhooks"), ("PATCH", "/webhooks/hook")):
        body = {"url": "https://evil.example/"} | ({"name": "h"} if method == "POST" else {})
        refused = await admin.ask(method, path, body)
        assert (refused.status_code, refused.json()["error"]["param"]) == (400, "url")
    rotated = await done(admin, "POST", "/webhooks/hook/rotate")
    assert rotated["secret"] != made["secret"]
    changed = await done(admin, "PATCH", "/webhooks/hook", {"tenant": None, "disabled": True})
    assert (changed["tenant"], changed["disabled_at"] is None) == (None, False)
    assert (await admin.ask("POST", "/webhooks/hook/test")).status_code == 409
    await done(admin, "PATCH", "/webhooks/hook", {"disabled": False})
    delivery = await done(admin, "POST", "/webhooks/hook/test")
    found = (await done(admin, "GET", "/webhooks/hook"))["deliveries"]
    assert [(each["id"], each["message_id"], each["created_at"]) for each in found] == [
        (delivery["id"], delivery["message_id"], delivery["created_at"])
    ]
    assert delivery["message_id"].startswith("msg_")
    await done(admin, "DELETE", "/webhooks/hook")
    assert (await done(admin, "GET", "/webhooks"))["data"] == []


@pytest.mark.usefixtures("same_day")
async def test_budgets_near_their_end_are_listed(admin):
    """As notices, and as they stand now."""
    await done(admin, "PATCH", "/tenants/acme", {"budget": 1000})
    await admin.world.postgres.fetch(
        "INSERT INTO gateway.budget_notices (scope, tenant_id, period, period_start, threshold,"
        " budget, spent) SELECT 't:' || id, id, 'month',"
        " date_trunc('month', now() AT TIME ZONE 'UTC')::date, n, 1000, n * 10"
        " FROM gateway.tenants, unnest('{80,100}'::int[]) n"
    )
    page = await done(admin, "GET", "/notices?limit=1&tenant=acme", role="viewer")
    assert (page["data"][0]["threshold"], page["data"][0]["tenant"]) == (100, "acme")
    rest = await done(admin, "GET", f"/notices?cursor={page['next']}")
    assert [row["threshold"] for row in rest["data"]] == [80]
    assert len((await done(admin, "GET", "/notices?threshold=80"))["data"]) == 1
    (now,) = (await done(admin, "GET", "/notices/current"))["data"]
    assert (now["threshold"], now["spent"]) == (100, 0)


async def test_the_description_is_a_page_without_a_script(admin):
    """Every operation is on it; its policy lets nothing run and its style alone in."""
    page = await admin.ask("GET", "/docs", role="viewer")
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    policy = page.headers["content-security-policy"]
    assert "default-src 'none'; style-src 'sha256-" in policy
    assert "<script" not in page.text
    assert "javascript:" not in page.text
    document = await done(admin, "GET", "/openapi.json", role="viewer")
    for path, methods in document["paths"].items():
        for operation in methods.values():
            assert f'<details id="{operation["operationId"]}">' in page.text
        assert path in page.text
    assert document["openapi"].startswith("3.1")


async def test_the_examples_of_the_readme_are_answered(admin):
    """Each curl line, as it stands, with the address and a token in the environment."""
    lines = [line for line in README.splitlines() if line.startswith("curl") and "$ADMIN" in line]
    assert len(lines) > 4
    for line in lines:
        words = shlex.split(line)
        path = next(word for word in words if word.startswith("$ADMIN/admin/v1"))
        body = json.loads(words[words.index("-d") + 1]) if "-d" in words else None
        method = words[words.index("-X") + 1] if "-X" in words else "POST" if body else "GET"
        answer = await admin.ask(method, path.removeprefix("$ADMIN/admin/v1"), body)
        assert answer.is_success, (line, answer.text)
