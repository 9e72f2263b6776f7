"""Instants that nobody meant: refused where they are given, harmless where they are stored."""

from datetime import UTC, datetime

import pytest
import trio

from tests.dashboard.visitor import words
from tests.integration.caller import PATIENCE

CHAT = {"model": "llama3.2", "messages": [{"role": "user", "content": "hello"}]}
ENDS = ("infinity", "294276-12-31", "9999-12-31 23:00-05")  # of what is still in force
OVER = ("-infinity", "4713-01-01 BC", "0001-01-01", "0001-01-01 00:00+05")
# As an earlier build wrote it.
RECORD = """
INSERT INTO gateway.admin_events (actor, action, subject, before, after)
SELECT 'cli', 'key.update', $1, format('{"expires_at": "%s"}', text)::jsonb, '{"expires_at": null}'
FROM unnest('{0001-01-01T00:00:00,0001-01-01T00:00:00+05:00,9999-12-31T23:59:59-05:00,never}'
    ::text[]) AS text
"""
SPOIL = """
WITH a AS (UPDATE gateway.api_keys SET expires_at = $1::text::timestamptz,
        previous_expires_at = $1::text::timestamptz, budget = 1000000000, budget_extra = 5,
        budget_extra_until = $1::text::timestamptz),
    b AS (UPDATE gateway.tenants SET budget = 1000000000, budget_extra = 5,
        budget_extra_until = $1::text::timestamptz)
UPDATE gateway.admins SET expires_at = $1::text::timestamptz WHERE role = 'viewer'
"""


async def answered(world, status):
    """Call until the row as it is now has been read."""
    with trio.fail_after(PATIENCE):
        while True:
            answer = await world.post("/v1/chat/completions", CHAT)
            assert answer.status_code in {200, 401}, answer.text
            if answer.status_code == status:
                return


@pytest.mark.parametrize("at", [*ENDS, *OVER])
async def test_what_is_stored_by_hand_breaks_no_page_and_no_call(world, admin, visitor, at):
    """A last instant that never comes is no end, and one before all others is past."""
    live = at in ENDS
    viewer = await admin.auth("viewer")
    await world.rows(SPOIL, at)
    await world.rows(RECORD, world.key["id"])
    await answered(world, 200 if live else 401)
    key, tenant = world.key["id"], world.tenant["id"]
    for path in (
        f"/tenants/{tenant}",
        f"/tenants/{tenant}/edit",
        f"/keys/{key}",
        f"/keys/{key}/edit",
        "/keys?state=active",
        "/keys?state=expired",
        "/tenants",
        "/admins",
        "/audit",
        "/notices",
        "/",
    ):
        await visitor.see(path)
    for path in (f"/keys/{key}", "/keys", f"/tenants/{tenant}", "/admins", "/audit/acts"):
        answer = await admin.ask("GET", path)
        assert answer.status_code == 200, (path, answer.text)
    found = (await admin.ask("GET", f"/keys/{key}")).json()
    assert found["state"] == ("active" if live else "expired")
    assert found["expires_at"].endswith("Z")
    shown = await admin.client.get("/admin/v1/status", headers=viewer)
    assert shown.status_code == (200 if live else 401)


BOUNDED = ("0001-01-01T00:00:00Z", "1969-12-31T23:59:59Z", "9000-01-01T00:00:00Z")


@pytest.mark.parametrize("at", [*BOUNDED, "2020-01-01T00:00:00Z"])
async def test_an_end_that_is_none_is_refused_by_name(world, admin, visitor, at):
    """By the API and by every form that asks for one, of keys, admins and increases."""
    key, tenant = world.key["id"], world.tenant["id"]
    limits = {"budget_period": "month", "grant": "all", "name": "k"}
    await world.accounts.update(tenant, {"budget": 5})
    before = await world.rows("SELECT count(*) FROM gateway.admin_events")
    for path, body in (
        ("/keys", {"tenant": "acme", "expires_at": at}),
        ("/admins", {"name": "ada", "role": "viewer", "expires_at": at}),
        ("/tenants/acme/extension", {"tokens": 5, "until": at}),
    ):
        answer = await admin.ask("POST", path, body)
        param = "until" if "until" in body else "expires_at"
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, param), path
    written = at[:16]
    for path, form, label in (
        (f"/tenants/{tenant}/keys/new", limits | {"expires_at": written}, "Expires"),
        ("/admins", {"name": "ada", "role": "viewer", "expires_at": written}, "Expires"),
        (f"/tenants/{tenant}/extend", {"tokens": "5", "until": written}, "until"),
    ):
        answer = await visitor.do(path, form)
        assert answer.status_code == 400, (path, words(answer.text))
        assert "must be" in words(answer.text)
        assert label.lower() in words(answer.text).lower()
    if at in BOUNDED:
        answer = await admin.ask("PATCH", f"/keys/{key}", {"expires_at": at})
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, "expires_at")
    assert await world.rows("SELECT count(*) FROM gateway.admin_events") == before


async def test_an_expired_secret_is_not_renewed(world, admin):
    """Its successor would be dead as well: 409, until the expiry is another."""
    key = world.key["id"]
    await world.keyring.update(key, {"expires_at": datetime.now(UTC)})
    answer = await admin.ask("POST", f"/keys/{key}/rotate")
    assert (answer.status_code, answer.json()["error"]["param"]) == (409, "key")
    assert "expired" in answer.json()["error"]["message"]
