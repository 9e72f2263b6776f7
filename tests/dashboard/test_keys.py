"""Finding keys, and what the pages tell of their use."""

from __future__ import annotations

import html
import re
from datetime import UTC, datetime, timedelta

from tests.dashboard.visitor import visiting, words

BODY = {"model": "llama3.2", "messages": [{"role": "user", "content": "hello"}]}


def listed(text):
    return re.findall(r'href="/keys/key_\w+">([^<]+)</a>', text)


async def test_a_key_is_found_by_its_start_whoever_has_it(world, admin):
    """By its public id, by what is shown of it, and by name; a viewer may look."""
    other = await world.tenant_with_key("lab", key={"name": "laptop"})
    await world.keyring.issue("acme", {"name": "Laptop two"})
    async with visiting(admin, "viewer") as viewer:
        assert listed(await viewer.see("/keys?find=lap")) == ["laptop", "Laptop two"]
        for known in (other["public_id"][:6], other["public_id"], other["id"]):
            text = await viewer.see(f"/keys?find={known}")
            assert listed(text) == ["laptop"]
            assert f'href="/tenants/{other["tenant_id"]}">lab</a>' in text
        assert "No key begins so" in await viewer.see("/keys?find=nothing")


async def test_a_whole_key_does_not_stay_in_the_address(world, visitor):
    """Whoever pastes one is led to its public id, and the secret is on no page."""
    key = await world.keyring.issue("acme", {"name": "laptop"})
    for pasted in (key["key"], f"sk-tg-{key['public_id']}-…{key['last4']}"):
        answer = await visitor.get("/keys", params={"find": pasted})
        assert answer.status_code == 303
        assert answer.headers["location"] == f"/keys?find={key['public_id']}"
        text = (await visitor.get("/keys", params={"find": pasted}, follow_redirects=True)).text
        assert listed(text) == ["laptop"]
        assert key["key"] not in text


async def test_keys_are_listed_by_what_became_of_them(world, visitor):
    """A tab for each state, and a word where there is none."""
    states = ("active", "expiring", "expired", "disabled", "revoked")
    await world.rows("UPDATE gateway.api_keys SET name = 'first'")
    for state in states[1:]:
        assert "No key is in this state" in await visitor.see(f"/keys?state={state}")
    at = datetime.now(UTC)
    for name in ("soon", "over", "away", "gone"):
        await world.keyring.issue("acme", {"name": name})
    for name, days in (("soon", 3), ("over", -3)):
        await world.rows(
            "UPDATE gateway.api_keys SET expires_at = $2 WHERE name = $1",
            name,
            at + timedelta(days=days),
        )
    await world.keyring.disable("away")
    await world.keyring.revoke("gone")
    found = [listed(await visitor.see(f"/keys?state={state}")) for state in states]
    assert found == [["soon", "first"], ["soon"], ["over"], ["away"], ["gone"]]
    assert len(listed(await visitor.see("/keys"))) == 5
    assert (await visitor.get("/keys?state=odd")).status_code == 400
    for wrong in ("after=x", "after=1.k&find=a", f"after={'9' * 17}.key_1&state=odd"):
        assert (await visitor.get(f"/keys?{wrong}")).status_code == 400


async def test_pages_of_keys_go_on_to_the_end(world, visitor):
    """Lists and searches, each key once, and what was asked is kept."""
    for number in range(105):
        await world.rows(
            "INSERT INTO gateway.api_keys (id, tenant_id, name, public_id, hash, expires_at)"
            " VALUES ($1, $2, $3, $1, 'none', now() + interval '1 day')",
            f"key_{number}",
            world.tenant["id"],
            f"many {number:03}",
        )
    for first in ("/keys", "/keys?state=expiring", "/keys?find=many"):
        where, found = first, []
        while where:
            text = await visitor.see(where)
            found += [name for name in listed(text) if name.startswith("many")]
            after = re.findall(r'href="(/keys\?[^"]*after=[^"]+)"', text)
            where = html.unescape(after[0]) if after else ""
        assert sorted(found) == [f"many {number:03}" for number in range(105)], first


async def test_a_key_says_what_it_was_used_for_and_when(world, visitor):
    """Charges by the day and the last call, on its page and in lists; none before the first."""
    where = f"/keys/{world.key['id']}"
    assert "Last call</dt><dd>none" in await visitor.see(where)
    assert 'data-label="Last call"><span class="quiet">none' in await visitor.see("/keys")
    assert (await world.post("/v1/chat/completions", BODY)).status_code == 200
    (row,) = await world.ledger()
    text = await visitor.see(where)
    began = f'<time datetime="{row["started_at"]:%Y-%m-%dT%H:%M:%SZ}"'
    assert f"Last call</dt><dd>{began}" in text
    assert f'data-label="Last call">{began}' in await visitor.see("/keys")
    assert f"{row['charged_tokens']} tokens in all" in words(text)
    (calls,) = re.findall(r'href="(/ledger\?[^"]+)"', text)
    assert row["request_id"] in await visitor.see(html.unescape(calls))


async def test_the_day_of_the_last_call_outlives_the_ledger(world, visitor):
    """Once its row is past retention, the day on which the key was charged is left."""
    assert (await world.post("/v1/chat/completions", BODY)).status_code == 200
    await world.settled()
    await world.rows("DELETE FROM gateway.ledger")
    await world.rows("UPDATE gateway.spend SET period_start = '2026-02-03'")
    text = await visitor.see(f"/keys/{world.key['id']}")
    assert 'Last call</dt><dd><time datetime="2026-02-03"' in text
