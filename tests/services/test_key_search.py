"""Keys of all tenants: found by what is known of them, listed by what became of them."""

from datetime import UTC, datetime, timedelta

import pytest

from tests.services.turning import turned
from trio_gateway.services.account_rows import Refused
from trio_gateway.services.accounts import Accounts
from trio_gateway.services.key_search import LISTS, KeySearch
from trio_gateway.services.keyring import Keyring
from trio_gateway.services.tenant_rows import read_installation_secret

NOW = datetime.now(UTC)
DAY = timedelta(days=1)


@pytest.fixture
async def books(postgres):
    accounts = Accounts(postgres, "test")
    keyring = Keyring(postgres, await read_installation_secret(postgres), "test")
    for name in ("acme", "lab", "off"):
        await accounts.create(name, {})
    return accounts, keyring, KeySearch(postgres)


def by_place(search, state):
    return turned(
        lambda at: search.listing(state, 2, at), lambda row: (row["listed_at"], row["id"]), 2
    )


async def test_every_key_is_in_the_lists_of_its_state(books, postgres):
    """One list for each state beside that of all; each key once, whatever the pages."""
    accounts, keyring, search = books
    ends = {"later": 30, "soon": 13, "sooner": 1, "over": -1, "long-over": -9, "revoked": -1}
    ends |= {"disabled": 1}
    made = {}
    for name in ("plain", *ends, "revoked-too", "disabled-too"):
        made[name] = (await keyring.issue("lab" if "o" in name else "acme", {"name": name}))["id"]
    for name, days in ends.items():
        await postgres.fetch(
            "UPDATE gateway.api_keys SET expires_at = $2 WHERE id = $1",
            made[name],
            NOW + days * DAY,
        )
    of_off = [(await keyring.issue("off", {"name": f"off-{n}"}))["id"] for n in range(3)]
    for name in ("disabled", "revoked", "disabled-too"):
        await keyring.disable(made[name])
    for name in ("revoked", "revoked-too"):
        await keyring.revoke(made[name])
    await accounts.disable("off")
    await keyring.enable(made["disabled-too"])
    await keyring.disable(made["disabled-too"])
    found = {state: await by_place(search, state) for state in LISTS}
    names = {state: [row["name"] for row in rows] for state, rows in found.items()}
    newest = [*sorted(of_off, reverse=True), *reversed(made.values())]
    assert sorted(row["id"] for row in found[""]) == sorted(newest)
    assert [row["created_at"] for row in found[""]] == sorted(
        (row["created_at"] for row in found[""]), reverse=True
    )
    assert names["active"] == ["sooner", "soon", "later", "plain"]
    assert names["expiring"] == ["sooner", "soon"]
    assert names["expired"] == ["over", "long-over"]
    assert names["disabled"][0] == "disabled-too"
    assert names["disabled"][-1] == "disabled"
    assert sorted(names["disabled"][1:-1]) == ["off-0", "off-1", "off-2"]
    assert names["revoked"] == ["revoked-too", "revoked"]
    for state in ("active", "expired", "disabled", "revoked"):
        assert {row["state"] for row in found[state]} == {state}
    assert all("hash" not in row and "previous_hash" not in row for row in found[""])


async def test_a_key_that_is_revoked_twice_is_listed_once(books, postgres):
    """By its first revocation, which is when it ended."""
    _, keyring, search = books
    key = await keyring.issue("acme", {})
    for age in (DAY, 3 * DAY, 3 * DAY, 2 * DAY):
        await postgres.fetch(
            "INSERT INTO gateway.revocations (key_id, revoked_at) VALUES ($1, $2)",
            key["id"],
            NOW - age,
        )
    (row,) = await by_place(search, "revoked")
    assert (row["id"], row["listed_at"]) == (key["id"], NOW - 3 * DAY)


async def test_keys_are_found_by_the_start_of_what_is_known(books):
    """Name in either case, public id, id, and the public id before a rotation; each key once."""
    _, keyring, search = books
    made = [
        await keyring.issue(tenant, {"name": name})
        for tenant in ("acme", "lab")
        for name in ("Laptop", "laptop 2", "desk", "50%_off", "Ünïcode", "")
    ]

    async def found(text):
        rows = await turned(lambda at: search.find(text, 2, at), lambda row: row["id"], 2)
        assert len({row["id"] for row in rows}) == len(rows)
        return [(row["tenant"], row["name"]) for row in rows]

    assert sorted(await found("lap")) == sorted(
        (tenant, name) for tenant in ("acme", "lab") for name in ("Laptop", "laptop 2")
    )
    assert [name for _, name in await found("LAP")] == ["Laptop", "Laptop", "laptop 2", "laptop 2"]
    assert sorted(await found("50%_")) == [("acme", "50%_off"), ("lab", "50%_off")]
    assert sorted(await found("Ünï")) == [("acme", "Ünïcode"), ("lab", "Ünïcode")]
    for nothing in ("aptop", "50%x", "key_", "\0", "\ud800", made[0]["public_id"][:3] + "~~"):
        assert await found(nothing) == [], nothing
    for key in made:
        mine = [(key["tenant"], key["name"])]
        for text in (key["id"], key["public_id"], key["public_id"][:7]):
            assert await found(text) == mine
    rotated = await keyring.rotate(made[0]["id"], DAY)
    for text in (rotated["public_id"], made[0]["public_id"]):
        assert await found(text) == [("acme", "Laptop")]


async def test_a_list_that_cannot_go_on_is_refused(books):
    """Where the key that ended the last page is gone."""
    with pytest.raises(Refused):
        await books[2].find("a", 2, "key_gone")
