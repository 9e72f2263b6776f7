"""The admin API on a running gateway: what it changes holds at the next call."""

from __future__ import annotations

from functools import partial

import pytest
import trio

from tests.integration.admin_world import open_admin
from tests.integration.caller import PATIENCE, SHAPES, calling, dispatched, ended
from tests.proxy import open_door
from trio_gateway.clients import postgres
from trio_gateway.simulator.script import Script

CHAT = {"model": "llama3.2", "messages": [{"role": "user", "content": "hello"}]}


@pytest.fixture
async def admin(world):
    async with open_admin(world) as opened:
        yield opened


async def chat(admin, key, **body):
    """Ask as a caller does."""
    return await admin.world.post("/v1/chat/completions", CHAT | body, key)


async def until(admin, key, status):
    """Ask until a change has reached the gateway: it takes a moment, not a restart."""
    with trio.fail_after(PATIENCE):
        while (answer := await chat(admin, key)).status_code != status:  # noqa: ASYNC110
            await trio.sleep(0.01)
    return answer


async def done(admin, method, path, body=None, status=200, role="admin"):
    """Ask the API and return what it answers."""
    answer = await admin.ask(method, path, body, role=role)
    assert answer.status_code == status, answer.text
    return answer.json()


async def some(admin, path):
    """Ask for a list until there is something in it."""
    with trio.fail_after(PATIENCE):
        while not (found := (await done(admin, "GET", path))["data"]):  # noqa: ASYNC110
            await trio.sleep(0.02)
    return found


async def test_a_token_of_each_role_is_known_by_it(admin):
    """An admin and a viewer see the status; the metrics role sees nothing of the API."""
    seen = [await admin.ask("GET", "/status", role=r) for r in ("admin", "viewer", "metrics")]
    assert [answer.status_code for answer in seen] == [200, 200, 403]
    assert seen[1].json()["role"] == "viewer"


async def test_health_waits_for_no_database_that_hangs(world, monkeypatch):
    """A token of the settings is told which store does not answer."""
    monkeypatch.setattr(postgres, "CONNECT_LIMIT", 600.0)
    monkeypatch.setattr(postgres, "COMMAND_LIMIT", 600.0)
    token = "of-the-settings-0123456789"
    async with (
        open_door(world.gateway.settings.database_url) as door,
        open_admin(world, database_url=door.url, admin_token=token) as admin,
    ):
        ask = partial(
            admin.client.get, "/admin/v1/health", headers={"authorization": f"Bearer {token}"}
        )
        assert (await ask()).json()["postgres"]["ok"] is True
        door.swallow()
        with trio.fail_after(60):
            answer = await ask()
        door.shut()  # what else asks meanwhile would wait for its limit at the end
    assert answer.json()["postgres"] == {"ok": False, "ms": None, "note": "does not answer"}
    assert (answer.json()["ok"], answer.json()["redis"]["ok"]) == (False, True)


async def test_a_tenant_and_a_key_made_here_are_served_at_once(admin):
    """201 with Location; the key is in this answer and in no other."""
    made = await admin.ask("POST", "/tenants", {"name": "lab", "models": ["LLAMA3.2", "qwen3:8b"]})
    assert made.status_code == 201
    tenant = made.json()
    assert made.headers["location"] == f"/admin/v1/tenants/{tenant['id']}"
    assert tenant["models"] == ["llama3.2:latest", "qwen3:8b"]
    assert (tenant["state"], tenant["created_at"][-1]) == ("active", "Z")
    key = await done(admin, "POST", "/keys", {"tenant": "lab", "name": "laptop"}, 201)
    assert (await chat(admin, key)).status_code == 200
    assert (await chat(admin, key, model="secret-model")).status_code == 403
    await admin.world.settled()
    for path in (f"/tenants/{tenant['id']}", f"/keys/{key['id']}", f"/keys/{key['public_id']}"):
        shown = await admin.ask("GET", path, role="viewer")
        assert shown.json()["spent"] > 0
        assert "keys" not in shown.json()
        assert key["key"] not in shown.text
        assert "hash" not in shown.text
    listed = await done(admin, "GET", "/keys?tenant=lab&match=LAP")
    assert [row["id"] for row in listed["data"]] == [key["id"]]
    assert not any("spent" in row for row in (tenant, key, *listed["data"]))
    (lab,) = (await done(admin, "GET", "/tenants?match=lab"))["data"]
    assert (lab["keys"], "spent" in lab) == (1, False)
    assert listed["next"] is None
    assert (await done(admin, "GET", "/tenants/lab/keys"))["data"] == listed["data"]


async def test_a_key_that_is_over_already_is_not_made(admin):
    """An end in the past is 400 by name."""
    before = await done(admin, "GET", "/keys")
    body = {"tenant": "acme", "expires_at": "2020-01-01T00:00:00Z"}
    refused = await admin.ask("POST", "/keys", body)
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "expires_at")
    assert await done(admin, "GET", "/keys") == before


async def test_limits_changed_here_bite_at_the_next_call(admin):
    """0 lets nothing pass, null lifts it, what is not named stays."""
    key = admin.world.key
    await done(admin, "PATCH", "/tenants/acme", {"requests_per_minute": 0, "budget": 1_000_000})
    await until(admin, key, 429)
    changed = await done(admin, "PATCH", "/tenants/acme", {"requests_per_minute": None})
    assert (changed["requests_per_minute"], changed["budget"]) == (None, 1_000_000)
    await until(admin, key, 200)
    await done(admin, "PATCH", f"/keys/{key['id']}", {"budget": 0, "budget_period": "day"})
    assert (await until(admin, key, 429)).json()["error"]["code"] == "insufficient_quota"
    await done(admin, "PATCH", f"/keys/{key['id']}", {"budget": 1})
    extended = await done(
        admin, "POST", f"/keys/{key['id']}/extension", {"tokens": 100_000, "seconds": 3600}
    )
    assert extended["effective_budget"] == 100_001
    await until(admin, key, 200)
    ended_now = await done(admin, "DELETE", f"/keys/{key['id']}/extension")
    assert ended_now["effective_budget"] == 1
    await until(admin, key, 429)


async def test_a_tenants_extension_ends_when_it_was_said_to(admin):
    """Until an instant, or for some seconds, one of the two; an unlimited budget has none."""
    path = "/tenants/acme/extension"
    for body, param in (
        ({"tokens": 5}, "until"),
        ({"tokens": 5, "seconds": 5, "until": "2099-01-01T00:00:00Z"}, "until"),
        ({"tokens": 5, "seconds": 5}, "budget"),
    ):
        answer = await admin.ask("POST", path, body)
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, param)
    await done(admin, "PATCH", "/tenants/acme", {"budget": 10})
    told = await admin.ask("POST", path, {"tokens": 5, "until": "2001-01-01T00:00:00Z"})
    assert (told.status_code, told.json()["error"]["param"]) == (400, "until")
    until_then = {"tokens": 5, "until": "2099-01-01T01:00:00+01:00"}
    row = await done(admin, "POST", path, until_then)
    assert (row["budget_extra"], row["budget_extra_until"]) == (5, "2099-01-01T00:00:00Z")
    assert (await done(admin, "DELETE", path))["budget_extra"] is None


async def test_a_key_can_only_narrow_its_tenant(admin):
    """Wider is 400 by name, and nothing of the change stays."""
    await done(admin, "PATCH", "/tenants/acme", {"models": ["llama3.2"], "budget": 100})
    key = admin.world.key["id"]
    for body, param in (({"models": ["qwen3:8b"]}, "models"), ({"budget": 101}, "budget")):
        answer = await admin.ask("PATCH", f"/keys/{key}", {"name": "changed"} | body)
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, param)
    assert (await done(admin, "GET", f"/keys/{key}"))["name"] == ""


async def test_a_rotated_key_overlaps_with_the_one_before(admin):
    """Both work until the overlap ends; rotated again without one, the earlier two end."""
    first = admin.world.key
    second = await done(admin, "POST", f"/keys/{first['id']}/rotate", {"overlap_seconds": 3600})
    assert (second["id"], second["key"] == first["key"]) == (first["id"], False)
    for key in (first, second):
        assert (await chat(admin, key)).status_code == 200
    third = await done(admin, "POST", f"/keys/{first['id']}/rotate", {"overlap_seconds": 0})
    assert (await chat(admin, third)).status_code == 200
    for key in (first, second):
        await until(admin, key, 401)


async def test_keys_are_disabled_expired_and_revoked(admin):
    """Each is 401 at once; a revoked one stays so."""
    key = admin.world.key
    path = f"/keys/{key['id']}"
    for change, undo in (
        (("POST", f"{path}/disable", None), ("POST", f"{path}/enable", None)),
        (
            ("PATCH", path, {"expires_at": "2020-01-01T00:00:00Z"}),
            ("PATCH", path, {"expires_at": None}),
        ),
        (("POST", "/tenants/acme/disable", None), ("POST", "/tenants/acme/enable", None)),
    ):
        await done(admin, *change)
        await until(admin, key, 401)
        await done(admin, *undo)
        await until(admin, key, 200)
    revoked = await done(admin, "POST", f"{path}/revoke", {"reason": "stolen"})
    assert revoked["state"] == "revoked"
    await until(admin, key, 401)
    for method, where, body in (
        ("POST", f"{path}/enable", None),
        ("POST", f"{path}/rotate", None),
        ("PATCH", path, {"budget": 1}),
    ):
        refused = await admin.ask(method, where, body)
        assert (refused.status_code, refused.json()["error"]["code"]) == (409, "conflict")
    assert (await done(admin, "PATCH", path, {"name": "former"}))["state"] == "revoked"


async def test_names_that_are_taken_or_shared_are_told(admin):
    """409 for a name that somebody has; 400 for a key's name that two have, until told whose."""
    taken = await admin.ask("POST", "/tenants", {"name": "acme"})
    assert (taken.status_code, taken.json()["error"]["code"]) == (409, "already_exists")
    assert taken.json()["error"]["param"] == "name"
    await done(admin, "POST", "/tenants", {"name": "lab"}, 201)
    for tenant in ("acme", "lab"):
        await done(admin, "POST", "/keys", {"tenant": tenant, "name": "twin"}, 201)
    assert (await admin.ask("GET", "/keys/twin")).status_code == 400
    assert (await done(admin, "GET", "/keys/twin?tenant=lab"))["tenant"] == "lab"


async def test_a_deleted_tenant_is_gone_with_its_keys(admin):
    """Its calls are refused, and its rows in the ledger stay under its id."""
    key = await admin.world.tenant_with_key("lab")
    assert (await chat(admin, key)).status_code == 200
    await admin.world.settled()
    gone = await done(admin, "DELETE", "/tenants/lab")
    assert gone["deleted"] is True
    await until(admin, key, 401)
    assert (await admin.ask("GET", "/tenants/lab")).status_code == 404
    row = (await done(admin, "GET", f"/ledger?tenant={gone['id']}"))["data"][-1]
    assert (row["tenant_id"], row["tenant"], row["key"]) == (gone["id"], None, None)


async def test_models_are_blocked_weighed_and_pinned(admin):
    """A block is a 403 at once, a weight is charged, and what was discovered is shown."""
    key = admin.world.key
    await done(admin, "PATCH", "/models/llama3.2", {"blocked": True})
    await until(admin, key, 403)
    await done(admin, "PATCH", "/models/llama3.2:latest", {"blocked": False, "weight": 2.5})
    await until(admin, key, 200)
    row = (await admin.world.ledger())[-1]
    used = row["prompt_tokens"] + row["completion_tokens"]
    assert used * 2 < row["charged_tokens"] <= used * 3
    pinned = await done(admin, "PATCH", "/models/team/other:7b", {"num_ctx": 4096})
    assert (pinned["name"], pinned["installed"], pinned["num_ctx"]) == (
        "team/other:7b",
        False,
        4096,
    )
    rows = {row["name"]: row for row in (await done(admin, "GET", "/models"))["data"]}
    assert rows["llama3.2:latest"]["weight"] == 2.5
    assert rows["qwen3:8b"]["installed"] is True
    assert rows["qwen3:8b"] == await done(admin, "GET", "/models/QWEN3:8b")
    for body, param in (({"weight": 0.0001}, "weight"), ({"digest": "abc"}, "digest")):
        answer = await admin.ask("PATCH", "/models/qwen3:8b", body)
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, param)
    acts = (await done(admin, "GET", "/audit/acts?subject=llama3.2:latest"))["data"]
    assert [act["action"] for act in acts] == ["model.update", "model.block"]
    assert (acts[0]["before"]["blocked"], acts[0]["after"]["blocked"]) == (True, False)


async def test_a_live_call_is_listed_and_cut(admin):
    """Its caller gets an error event, the ledger a row `cut`, the record who did it."""
    admin.world.sim.play(Script(token_gap=60, tokens=9))
    async with calling(admin.world, SHAPES["openai"]) as caller:
        await dispatched(admin.world)
        (call,) = await some(admin, "/calls?tenant=acme")
        assert (call["tenant"], call["phase"]) == ("acme", "dispatched")
        assert (await admin.ask("POST", f"/calls/{call['request_id']}/cut", role="viewer")).is_error
        await done(admin, "POST", f"/calls/{call['request_id']}/cut")
        await caller.until(b"call_cut")
    assert (await ended(admin.world))["outcome"] == "cut"
    again = await admin.ask("POST", f"/calls/{call['request_id']}/cut")
    assert again.status_code == 404
    (act,) = (await done(admin, "GET", f"/audit/acts?subject={call['request_id']}"))["data"]
    assert (act["actor"], act["action"]) == ("admin:admin", "call.cut")


async def test_workers_backends_and_stores_tell_how_they_are(admin):
    """The one worker reports, with its backend; both stores answer."""
    (worker,) = await some(admin, "/workers")
    with trio.fail_after(PATIENCE):
        # the first report may be of before the models were discovered
        while not (found := (await done(admin, "GET", "/backends"))["data"])[0]["models"]:  # noqa: ASYNC110
            await trio.sleep(0.02)
    (backend,) = found
    assert backend["healthy"] is True
    assert backend["models"] == len(admin.world.simulator.sim.models)
    assert backend["worker"] == {name: worker[name] for name in ("host", "slot", "pid")}
    health = await done(admin, "GET", "/health")
    assert health["ok"] is True
    assert health["workers"] == 1
    assert health["postgres"]["ms"] > 0
