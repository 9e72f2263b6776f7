"""Names and ids in the admin API: whom they mean, what they may be, and that they can change."""

from urllib.parse import quote

import pytest

from tests.integration.admin_world import open_admin
from tests.integration.test_admin_api import chat, done
from trio_gateway.core.domain import Outcome
from trio_gateway.services.account_rows import new_id


@pytest.fixture
async def admin(world):
    async with open_admin(world, webhook_hosts="hooks.example") as opened:
        yield opened


async def refused(admin, method, path, body=None, status=400):
    """Ask for what is refused; return the field at fault."""
    answer = await admin.ask(method, path, body)
    assert answer.status_code == status, answer.text
    return answer.json()["error"]["param"]


async def test_no_name_can_be_taken_for_an_id(admin):
    """Not for one of its own kind nor of another, at its making nor later."""
    key, tenant = admin.world.key, admin.world.tenant
    for name in (tenant["id"], key["id"], new_id("ten_"), new_id("adm_"), new_id("wh_")):
        for path, body in (
            ("/tenants", {"name": name}),
            ("/keys", {"name": name, "tenant": "acme"}),
            ("/admins", {"name": name, "role": "viewer"}),
            ("/webhooks", {"name": name, "url": "https://hooks.example/"}),
        ):
            assert await refused(admin, "POST", path, body) == "name", (path, name)
        for path in (f"/tenants/{tenant['id']}", f"/keys/{key['id']}"):
            assert await refused(admin, "PATCH", path, {"name": name}) == "name"
    for name in (key["public_id"],):
        body = {"name": name, "tenant": "acme"}
        assert await refused(admin, "POST", "/keys", body) == "name"
        other = await done(admin, "POST", "/keys", {"tenant": "acme"}, 201)
        assert await refused(admin, "PATCH", f"/keys/{other['id']}", {"name": name}) == "name"
    for name in ("ten_acme", "key_1", "adm_x", tenant["id"] + "x"):
        await done(admin, "POST", "/tenants", {"name": name}, 201)


@pytest.mark.parametrize("name", ["operator", "Operator"])
async def test_nobody_else_is_called_as_the_installations_own_token(admin, name):
    """The record would not tell them apart."""
    body = {"name": name, "role": "admin"}
    assert await refused(admin, "POST", "/admins", body) == "name"


async def test_a_tenant_can_be_renamed(admin):
    """Its id, its keys and what is booked stay; the old name is free again."""
    tenant, key = admin.world.tenant, admin.world.key
    assert (await chat(admin, key)).status_code == 200
    await admin.world.settled()
    await done(admin, "POST", "/tenants", {"name": "lab"}, 201)
    assert await refused(admin, "PATCH", "/tenants/acme", {"name": "lab"}, 409) == "name"
    assert await refused(admin, "PATCH", "/tenants/acme", {"name": "a b"}) == "name"
    renamed = await done(admin, "PATCH", "/tenants/acme", {"name": "acme-labs"})
    assert (renamed["id"], renamed["name"]) == (tenant["id"], "acme-labs")
    await done(admin, "GET", "/tenants/acme", status=404)
    (row,) = (await done(admin, "GET", "/ledger?tenant=acme-labs"))["data"]
    assert (row["tenant"], row["tenant_id"]) == ("acme-labs", tenant["id"])
    assert (await done(admin, "GET", f"/keys/{key['id']}"))["tenant"] == "acme-labs"
    assert (await chat(admin, key)).status_code == 200
    (act,) = (await done(admin, "GET", f"/audit/acts?subject={tenant['id']}&limit=1"))["data"]
    assert (act["before"]["name"], act["after"]["name"]) == ("acme", "acme-labs")
    await done(admin, "POST", "/tenants", {"name": "acme"}, 201)


async def test_an_admins_expiry_can_be_changed(admin):
    """Later, never, or now; the token stays, and the last admin does too."""
    token = (await done(admin, "POST", "/admins", {"name": "ada", "role": "viewer"}, 201))["token"]
    headers = {"authorization": f"Bearer {token}"}

    async def status():
        return (await admin.client.get("/admin/v1/status", headers=headers)).status_code

    for end, honored in (
        ("2099-01-01T00:00:00Z", 200),
        ("2020-01-01T00:00:00Z", 401),
        (None, 200),
    ):
        row = await done(admin, "PATCH", "/admins/ada", {"expires_at": end})
        assert (row["expires_at"], row["role"]) == (end, "viewer")
        assert await status() == honored
    await done(admin, "PATCH", "/admins/ada", {"expires_at": None, "role": "metrics"})
    assert await status() == 403
    past = {"expires_at": "2020-01-01T00:00:00Z"}
    await refused(admin, "PATCH", "/admins/admin", past, 409)
    assert await refused(admin, "PATCH", "/admins/ada", {}) is None


async def test_a_contradiction_about_models_is_refused(admin):
    """Named models beside all of them: by one request; named alone they are the ones."""
    both = {"models": ["qwen3:8b"], "all_models": True}
    assert await refused(admin, "POST", "/tenants", {"name": "lab", **both}) == "models"
    assert await refused(admin, "PATCH", "/tenants/acme", both) == "models"
    await done(admin, "PATCH", "/tenants/acme", {"models": [], "all_models": True})
    row = await done(admin, "PATCH", "/tenants/acme", {"models": ["qwen3:8b"]})
    assert (row["models"], row["all_models"]) == (["qwen3:8b"], False)


async def test_every_refusal_of_a_field_names_it(admin):
    """Also where two fields are at odds, or a name means several keys."""
    key = admin.world.key
    await done(admin, "PATCH", "/tenants/acme", {"budget": 5})
    for body in (
        {"tokens": 5},
        {"tokens": 5, "seconds": 60, "until": "2099-01-01T00:00:00Z"},
        {"tokens": 5, "until": None, "seconds": None},
    ):
        assert await refused(admin, "POST", "/tenants/acme/extension", body) == "until"
    await done(admin, "POST", "/tenants/acme/extension", {"tokens": 5, "seconds": 60})
    for _ in range(3):
        await done(admin, "POST", "/keys", {"tenant": "acme", "name": "k1"}, 201)
    assert await refused(admin, "GET", "/keys/k1") == "key"
    await done(admin, "POST", f"/keys/{key['id']}/revoke")
    for act in ("rotate", "enable"):
        assert await refused(admin, "POST", f"/keys/{key['id']}/{act}", status=409) == "key"


async def test_acts_are_found_by_name_and_by_id_alike(admin):
    """Of tenants, keys, admins, webhooks and models; what nobody knows is 404."""
    key = admin.world.key
    tenant = await done(admin, "POST", "/tenants", {"name": "lab", "all_models": True}, 201)
    await done(admin, "PATCH", f"/keys/{key['id']}", {"name": "laptop"})
    lab_key = await done(admin, "POST", "/keys", {"tenant": "lab", "name": "laptop"}, 201)
    ada = await done(admin, "POST", "/admins", {"name": "ada", "role": "viewer"}, 201)
    hook = await done(
        admin, "POST", "/webhooks", {"name": "hook", "url": "https://hooks.example/"}, 201
    )
    await done(admin, "PATCH", "/models/llama3.2", {"blocked": True})

    async def subjects(subject, limit=100):
        acts = await done(admin, "GET", f"/audit/acts?subject={subject}&limit={limit}")
        ids = [act["id"] for act in acts["data"]]
        assert ids == sorted(ids, reverse=True)
        return [act["subject"] for act in acts["data"]]

    for name, found in (
        ("lab", [tenant["id"]]),
        ("laptop", [lab_key["id"], *[key["id"]] * 2]),
        (lab_key["public_id"], [lab_key["id"]]),
        ("ada", [ada["id"]]),
        ("hook", [hook["id"]]),
        ("LLAMA3.2", ["llama3.2:latest"]),
    ):
        assert await subjects(name) == found
        assert await subjects(found[0]) == [found[0]] * found.count(found[0])
    assert await subjects("laptop", 1) == [lab_key["id"]]
    await done(admin, "DELETE", "/tenants/lab")
    assert await subjects(tenant["id"]) == [tenant["id"]] * 2
    for nobody in ("lab", "nobody", new_id("ten_"), "a%00b", "%C3%A4:b c"):
        await done(admin, "GET", f"/audit/acts?subject={nobody}", status=404)


async def test_what_no_list_can_be_asked_for_is_refused(admin):
    """Cursors of no page, words outside a closed set and a span that ends before it begins."""
    for path, param in (
        ("/ledger?outcome=nope", "outcome"),
        ("/ledger?since=2026-01-02T00:00:00Z&until=2026-01-01T00:00:00Z", "since"),
        ("/ledger?since=2026-01-01T00:00:00Z&until=2026-01-01T00:00:00Z", "since"),
        ("/ledger?cursor=zzz", "cursor"),
        ("/tenants?cursor=zzz", "cursor"),
        ("/tenants?cursor=enp6", "cursor"),
        ("/tenants?cursor=YWZ0ZXIg%C3%A4", "cursor"),
        ("/audit/acts?cursor=1", "cursor"),
        ("/audit/refusals?cursor=12345", "cursor"),
        ("/notices?cursor=1", "cursor"),
        ("/keys?cursor=zzz", "cursor"),
    ):
        assert await refused(admin, "GET", path) == param, path
    for outcome in Outcome:
        await done(admin, "GET", f"/ledger?outcome={outcome}")


@pytest.mark.parametrize("name", ["team/laptop", "a/b?c#d", "x/rotate", "../../x", "100%", "ä é"])
async def test_a_key_goes_by_its_name_whatever_is_in_it(admin, name):
    """Each thing that can be done to it, with the name encoded as in any address."""
    made = await done(admin, "POST", "/keys", {"tenant": "acme", "name": name}, 201)
    path = f"/keys/{quote(name, safe='')}"
    assert (await done(admin, "GET", path))["id"] == made["id"]
    await done(admin, "PATCH", "/tenants/acme", {"budget": 5})
    await done(admin, "PATCH", path, {"budget": 5})
    await done(admin, "POST", f"{path}/extension", {"tokens": 5, "seconds": 60})
    await done(admin, "DELETE", f"{path}/extension")
    for act in ("rotate", "disable", "enable", "revoke"):
        assert (await done(admin, "POST", f"{path}/{act}"))["id"] == made["id"]
