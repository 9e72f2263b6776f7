"""The operator's books of tenants and keys: changes, refusals, and the record of both."""

import json
from datetime import UTC, datetime, timedelta

import pytest
import trio

from trio_gateway.core.keys import parse_key
from trio_gateway.services.account_rows import BIGGEST, NotFound, Refused, Unfit
from trio_gateway.services.accounts import Accounts
from trio_gateway.services.keyring import Keyring
from trio_gateway.services.tenant_rows import read_installation_secret

LIMIT = 60
pytestmark = pytest.mark.usefixtures("same_day")


@pytest.fixture
def accounts(postgres):
    return Accounts(postgres, "test")


@pytest.fixture
async def keyring(postgres):
    with trio.fail_after(LIMIT):
        yield Keyring(postgres, await read_installation_secret(postgres), "test")


async def events(postgres):
    return await postgres.fetch("SELECT * FROM gateway.admin_events ORDER BY id")


async def test_a_tenant_is_found_by_name_and_by_id(accounts, keyring):
    """What was set is there under both, and the defaults where nothing was."""
    made = await accounts.create("acme", {"models": ["m:latest"], "budget": 5})
    assert made["id"].startswith("ten_")
    assert len(made["id"]) == 24
    by_name, by_id = await accounts.show("acme"), await accounts.show(made["id"])
    assert by_name == by_id == made | {"spent": 0}
    assert (made["budget_period"], made["weight_share"], made["all_models"]) == ("month", 1, False)


@pytest.mark.parametrize("name", ["", "a b", "-a", "a" * 64, "a\n", "ä", "a/b", "a\0"])
async def test_a_tenants_name_is_plain(accounts, keyring, name):
    """Names go into URLs, files and shells."""
    with pytest.raises(Refused, match="a tenant's name must be"):
        await accounts.create(name, {})


async def test_names_of_tenants_are_taken_once(accounts, keyring):
    """A second tenant of one name is refused, and nothing is recorded for it."""
    await accounts.create("acme", {})
    with pytest.raises(Refused, match="named acme already"):
        await accounts.create("acme", {})
    assert [row["name"] for row in await accounts.listing()] == ["acme"]


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("budget", -1),
        ("budget", BIGGEST + 1),
        ("tokens_per_minute", -1),
        ("requests_per_minute", -1),
        ("max_output_tokens", 0),
        ("weight_share", 0),
        ("weight_share", 1001),
        ("weight_share", None),
        ("budget_period", "week"),
    ],
)
async def test_values_out_of_range_name_their_column(accounts, keyring, column, value):
    """The refusal says which one, and the row is not made."""
    with pytest.raises(Refused) as caught:
        await accounts.create("acme", {column: value})
    assert caught.value.param == column
    assert await accounts.listing() == []


async def test_columns_that_are_not_the_operators_are_an_error_of_the_program(accounts, keyring):
    """No caller can set an id or a hash."""
    for values in ({"id": "x"}, {"name": "x"}, {"budget = 1 --": 1}):
        with pytest.raises(TypeError):
            await accounts.create("acme", values)
    with pytest.raises(TypeError):
        await keyring.issue("acme", {"hash": "x"})


async def test_zero_allows_none_and_null_lifts(accounts, keyring):
    """An update sets what it names and leaves the rest."""
    await accounts.create("acme", {"budget": 0, "requests_per_minute": 7})
    row = await accounts.update("acme", {"budget": None})
    assert (row["budget"], row["requests_per_minute"]) == (None, 7)
    row = await accounts.update("acme", {"tokens_per_minute": 0})
    assert row["tokens_per_minute"] == 0


async def test_listing_finds_by_part_of_a_name_taken_literally(accounts, keyring):
    """Percent, underscore and backslash are no patterns."""
    for name in ("lab_one", "labXone", "Other"):
        await accounts.create(name, {})
    assert [row["name"] for row in await accounts.listing("LAB_")] == ["lab_one"]
    assert await accounts.listing("%") == []
    assert await accounts.listing("\\\0") == []
    assert len(await accounts.listing(limit=2)) == 2


async def test_disable_and_enable_are_repeatable_and_recorded_once(accounts, keyring, postgres):
    """The second time changes nothing."""
    await accounts.create("acme", {})
    first = await accounts.disable("acme")
    assert first["disabled_at"] is not None
    assert (await accounts.disable("acme"))["disabled_at"] == first["disabled_at"]
    assert (await accounts.enable("acme"))["disabled_at"] is None
    await accounts.enable("acme")
    actions = [row["action"] for row in await events(postgres)]
    assert actions == ["tenant.create", "tenant.disable", "tenant.enable"]


async def test_deleting_a_tenant_takes_its_keys_and_keeps_the_record(accounts, keyring, postgres):
    """Keys and revocations go with it; the event says what there was."""
    await accounts.create("acme", {})
    key = await keyring.issue("acme", {})
    await keyring.revoke(key["id"])
    await keyring.issue("acme", {})
    gone = await accounts.delete("acme")
    for find in (accounts.show("acme"), keyring.show(key["id"]), accounts.delete(gone["id"])):
        with pytest.raises(NotFound):
            await find
    assert json.loads((await events(postgres))[-1]["before"])["name"] == "acme"


async def test_a_tenant_that_something_else_refers_to_is_not_deleted(accounts, keyring, postgres):
    """Whatever owns rows elsewhere is named, and nothing is lost."""
    row = await accounts.create("acme", {})
    await postgres.fetch("CREATE TABLE gateway.thing (t text REFERENCES gateway.tenants)")
    await postgres.fetch("INSERT INTO gateway.thing VALUES ($1)", row["id"])
    with pytest.raises(Refused, match="disable the tenant instead"):
        await accounts.delete("acme")
    assert (await accounts.show("acme"))["id"] == row["id"]


ADD_BATCH = """
INSERT INTO gateway.batches (id, tenant_id, key_id, endpoint, input_file_id, completion_window,
    fingerprint, status, expires_at)
VALUES ('batch_1', $1, $2, '/v1/completions', 'file-1', '24h', '', $3, now())
"""
ADD_FILE = """
INSERT INTO gateway.files (id, tenant_id, purpose, filename, bytes, blob, deleted_at)
VALUES ('file-1', $1, 'batch', 'a.jsonl', 1, 'files/a/b', $2)
"""


async def test_a_tenant_goes_with_its_ended_batches_and_hidden_files(accounts, keyring, postgres):
    """Nothing of them is left, and what the files hold is about to be deleted."""
    row, key = await accounts.create("acme", {}), await keyring.issue("acme", {})
    await postgres.fetch(ADD_BATCH, row["id"], key["id"], "completed")
    await postgres.fetch(ADD_FILE, row["id"], datetime.now(UTC))
    await accounts.delete("acme")
    for table in ("tenants", "api_keys", "batches", "files"):
        assert await postgres.fetch(f"SELECT FROM gateway.{table}") == []
    doomed = await postgres.fetch("SELECT path FROM gateway.doomed_blobs WHERE due <= now()")
    assert [dict(blob) for blob in doomed] == [{"path": "files/a/b"}]


@pytest.mark.parametrize("what", ["a batch under way", "a file"])
async def test_a_tenant_with_work_or_files_is_not_deleted(accounts, keyring, postgres, what):
    """One sentence says why, and nothing is lost."""
    row, key = await accounts.create("acme", {}), await keyring.issue("acme", {})
    if what == "a file":
        await postgres.fetch(ADD_FILE, row["id"], None)
    else:
        await postgres.fetch(ADD_BATCH, row["id"], key["id"], "in_progress")
    with pytest.raises(Refused, match="files or open batches"):
        await accounts.delete("acme")
    assert (await keyring.show(key["id"]))["id"] == key["id"]


async def test_a_key_is_shown_once_and_its_secret_is_kept_nowhere(accounts, keyring, postgres):
    """Neither a row, nor a list, nor the record holds the secret, or the hash of it."""
    await accounts.create("acme", {})
    made = await keyring.issue("acme", {"name": "laptop"})
    parsed = parse_key(made["key"], await read_installation_secret(postgres))
    assert parsed is not None
    assert parsed.public_id == made["public_id"]
    assert made["key"].endswith(made["last4"])
    shown = repr([await keyring.show(made["id"]), await keyring.listing(), await events(postgres)])
    assert parsed.secret not in shown
    assert "argon2" not in shown + repr(made)
    stored = repr(await postgres.fetch("SELECT * FROM gateway.api_keys"))
    assert parsed.secret not in stored


async def test_a_key_is_found_by_everything_it_is_called(accounts, keyring):
    """Id, public id, the replaced public id, name, name within a tenant, and the whole text."""
    await accounts.create("acme", {})
    old = await keyring.issue("acme", {"name": "laptop"})
    new = await keyring.rotate("laptop", timedelta(hours=1))
    for name in (old["id"], old["public_id"], new["public_id"], "laptop", old["key"], new["key"]):
        assert (await keyring.show(name))["id"] == old["id"]
        assert (await keyring.show(name, "acme"))["id"] == old["id"]
    for name in ("", "nothing", "lap", "\0\ud800"):
        with pytest.raises(NotFound):
            await keyring.show(name)


async def test_a_name_that_several_keys_have_needs_more(accounts, keyring):
    """The tenant tells them apart, or that all but one are revoked; a guess is never made."""
    await accounts.create("acme", {})
    await accounts.create("other", {})
    first = await keyring.issue("acme", {"name": "k"})
    second = await keyring.issue("other", {"name": "k"})
    with pytest.raises(Refused, match="2 keys are named 'k'"):
        await keyring.show("k")
    assert (await keyring.show("k", "other"))["id"] == second["id"]
    with pytest.raises(NotFound):
        await keyring.show(first["id"], "other")
    await keyring.revoke(first["id"])
    assert (await keyring.show("k"))["id"] == second["id"]


@pytest.mark.parametrize(
    ("tenant", "key", "column"),
    [
        ({"budget": 100}, {"budget": 101}, "budget"),
        ({"budget": 100}, {"budget": 101, "budget_period": "day"}, "budget"),
        ({"budget": 0}, {"budget": 1}, "budget"),
        ({"requests_per_minute": 5}, {"requests_per_minute": 6}, "requests_per_minute"),
        ({"tokens_per_minute": 5}, {"tokens_per_minute": 6}, "tokens_per_minute"),
        ({"max_output_tokens": 5}, {"max_output_tokens": 6}, "max_output_tokens"),
        ({"models": ["a:latest"]}, {"models": ["b:latest"]}, "models"),
        ({}, {"models": ["b:latest"]}, "models"),
    ],
)
async def test_a_key_cannot_widen_its_tenant(accounts, keyring, tenant, key, column):
    """At issue and at update alike, the refusal names the column and the tenant's value."""
    await accounts.create("acme", tenant)
    with pytest.raises(Refused, match="acme") as caught:
        await keyring.issue("acme", key)
    assert caught.value.param == column
    plain = await keyring.issue("acme", {})
    with pytest.raises(Refused):
        await keyring.update(plain["id"], key)


@pytest.mark.parametrize(
    ("tenant", "key"),
    [
        ({"budget": 100}, {"budget": 100}),
        ({"budget": 100, "budget_period": "day"}, {"budget": 900, "budget_period": "month"}),
        ({"all_models": True}, {"models": ["b:latest"]}),
        ({"models": ["a:latest", "b:latest"]}, {"models": ["b:latest"]}),
        ({"requests_per_minute": 5}, {"requests_per_minute": None}),
        ({}, {"budget": 0, "max_output_tokens": 1}),
    ],
)
async def test_a_key_may_narrow_its_tenant(accounts, keyring, tenant, key):
    """Less, the same, unset, or not comparable: both limits hold at run time."""
    await accounts.create("acme", tenant)
    row = await keyring.issue("acme", key)
    assert {column: row[column] for column in key} == key


async def test_a_key_wider_than_a_tenant_narrowed_later_can_still_be_changed(accounts, keyring):
    """Only what an update changes is compared."""
    await accounts.create("acme", {})
    key = await keyring.issue("acme", {"budget": 100, "requests_per_minute": 9})
    await accounts.update("acme", {"budget": 10, "requests_per_minute": 1})
    assert (await keyring.update(key["id"], {"name": "x"}))["name"] == "x"
    assert (await keyring.disable(key["id"]))["state"] == "disabled"
    with pytest.raises(Refused) as caught:
        await keyring.update(key["id"], {"budget_period": "day"})
    assert caught.value.param == "budget"


@pytest.mark.parametrize("name", ["x" * 201, "a\nb", "a\0"])
async def test_a_keys_name_is_printable(accounts, keyring, name):
    """What is listed on a terminal cannot rule it."""
    await accounts.create("acme", {})
    with pytest.raises(Refused, match="a key's name"):
        await keyring.issue("acme", {"name": name})


async def test_a_key_of_nobody_is_not_made(accounts, keyring):
    """The tenant must be there."""
    with pytest.raises(NotFound, match="there is no tenant 'ghost'"):
        await keyring.issue("ghost", {})
    with pytest.raises(NotFound):
        await keyring.listing("ghost")


async def test_revoking_is_final_and_repeatable(accounts, keyring, postgres):
    """One revocation, one record; no rotation brings the key back."""
    await accounts.create("acme", {})
    key = await keyring.issue("acme", {})
    first = await keyring.revoke(key["id"], reason="lost")
    assert first["state"] == "revoked"
    assert await keyring.revoke(key["id"]) == first
    rows = await postgres.fetch("SELECT key_id, reason FROM gateway.revocations")
    assert [tuple(row) for row in rows] == [(key["id"], "lost")]
    with pytest.raises(Refused, match="revoked"):
        await keyring.rotate(key["id"], timedelta(0))
    for change in (keyring.enable(key["id"]), keyring.update(key["id"], {"budget": 1})):
        with pytest.raises(Unfit, match="revoked"):
            await change
    renamed = await keyring.update(key["id"], {"name": "former"})
    assert (renamed["name"], renamed["state"]) == ("former", "revoked")


async def test_rotation_keeps_the_id_and_the_limits(accounts, keyring):
    """New public id and secret; the old ones with their end beside them, or gone at once."""
    await accounts.create("acme", {})
    old = await keyring.issue("acme", {"name": "k", "budget": 5})
    new = await keyring.rotate(old["id"], timedelta(hours=24))
    assert (new["id"], new["budget"], new["name"]) == (old["id"], 5, "k")
    assert new["public_id"] != old["public_id"]
    assert new["previous_public_id"] == old["public_id"]
    left = new["previous_expires_at"] - datetime.now(UTC)
    assert timedelta(hours=23, minutes=59) < left <= timedelta(hours=24)
    last = await keyring.rotate(old["id"], timedelta(0))
    assert (last["previous_public_id"], last["previous_expires_at"]) == (None, None)


async def test_a_list_shows_the_state_of_each_key(accounts, keyring):
    """Active, expired, disabled and revoked; a revocation shows before the rest."""
    await accounts.create("acme", {})
    past = datetime.now(UTC) - timedelta(seconds=1)
    for name in ("a", "e", "d", "r"):
        await keyring.issue("acme", {"name": name})
    await keyring.update("e", {"expires_at": past})
    await keyring.disable("d")
    await keyring.disable("r")
    await keyring.revoke("r")
    states = {row["name"]: row["state"] for row in await keyring.listing("acme")}
    assert states == {"a": "active", "e": "expired", "d": "disabled", "r": "revoked"}
    assert [row["name"] for row in await keyring.listing(match="E")] == ["e"]
    assert len(await keyring.listing(limit=3)) == 3
    await keyring.enable("d")
    await accounts.disable("acme")
    assert (await keyring.show("d"))["state"] == "disabled"


async def test_what_was_spent_in_the_present_period_is_shown(accounts, keyring, postgres):
    """Days before the period do not count; a total counts them all."""
    tenant = await accounts.create("acme", {"budget_period": "day"})
    key = await keyring.issue("acme", {"budget_period": "total"})
    for scope in (f"t:{tenant['id']}", f"k:{key['id']}"):
        await postgres.fetch(
            "INSERT INTO gateway.spend VALUES ($1, (now() AT TIME ZONE 'UTC')::date, 3),"
            " ($1, '2020-01-01', 4)",
            scope,
        )
    assert (await accounts.show("acme"))["spent"] == 3
    assert (await keyring.show(key["id"]))["spent"] == 7
    await accounts.update("acme", {"budget_period": "month"})
    assert (await accounts.show("acme"))["spent"] == 3
