"""Admins: whose token it is, what it may do, and that a change holds at once."""

import hashlib
from datetime import UTC, datetime, timedelta

import pytest
import trio

from tests.proxy import open_door
from trio_gateway.clients.bridge import open_bridge
from trio_gateway.clients.postgres import open_postgres
from trio_gateway.core.errors import StoreUnavailable
from trio_gateway.core.officers import Officer, Role, lookup_of
from trio_gateway.services import admins as admins_module
from trio_gateway.services.account_rows import NotFound, Refused, Unfit
from trio_gateway.services.admins import AdminBook, Admins
from trio_gateway.services.logins import ACCOUNT_MOST, CLIENT_MOST, Logins
from trio_gateway.services.secrets import Secrets
from trio_gateway.services.sessions import MOST, Sessions

OWN = "an operator's own token"


@pytest.fixture
def book(postgres):
    return AdminBook(postgres, "test", Secrets())


@pytest.fixture
def admins(postgres):
    return Admins(postgres, Secrets(), {OWN: ("operator", Role.ADMIN)})


@pytest.fixture
def sessions(postgres, admins):
    return Sessions(postgres, admins, 1800)


async def test_a_token_proves_its_admin_and_is_kept_as_argon2id(book, admins, postgres):
    """The row has no token; the answer has name and role."""
    made = await book.create("ada", "viewer")
    found = await admins.prove(made["token"])
    assert (found.name, found.role) == ("ada", Role.VIEWER)
    (row,) = await postgres.fetch("SELECT * FROM gateway.admins")
    assert row["hash"].startswith("$argon2id$")
    assert made["token"] not in str(dict(row))
    assert "hash" not in made
    assert "lookup" not in made


async def test_what_is_no_token_proves_nothing(book, admins):
    """Empty, long, unknown, and one that only begins like a known one."""
    token = (await book.create("ada", "admin"))["token"]
    for text in ("", "x" * 10_000, "tga-unknown", token[:-1], token + "x", "\0"):
        assert await admins.prove(text) is None
    assert await admins.prove(token) is not None


async def test_a_token_of_the_settings_needs_no_row(admins):
    """It works beside those in the database."""
    assert (await admins.prove(OWN)).role is Role.ADMIN


@pytest.mark.parametrize("act", ["disable", "delete", "rotate"])
async def test_a_change_holds_from_the_next_request_on(book, admins, act):
    """Also for a token that was proven a moment ago."""
    token = (await book.create("ada", "admin"))["token"]
    assert await admins.prove(token)
    await getattr(book, act)("ada")
    assert await admins.prove(token) is None


async def test_a_role_changes_at_once_and_an_expired_admin_is_none(book, admins, postgres):
    """Assigned down, the same token reads only; past its end it is nothing."""
    token = (await book.create("ada", "admin"))["token"]
    await book.assign("ada", "viewer")
    assert (await admins.prove(token)).role is Role.VIEWER
    over = await book.create("bob", "admin", datetime.now(UTC) + timedelta(days=1))
    await postgres.fetch("UPDATE gateway.admins SET expires_at = now() WHERE name = 'bob'")
    assert await admins.prove(over["token"]) is None


async def test_the_digest_of_an_earlier_release_becomes_argon2id_at_its_first_use(admins, postgres):
    """The old token goes on, and a wrong one with the same lookup does not."""
    old = "tga-old-token"
    digest = hashlib.sha256(old.encode()).hexdigest()
    await postgres.fetch(
        "INSERT INTO gateway.admins (id, name, role, lookup, hash)"
        " VALUES ('adm_1', 'admin', 'admin', $1, $2)",
        lookup_of(old),
        f"sha256:{digest}",
    )
    assert await admins.prove(old)
    (row,) = await postgres.fetch("SELECT hash FROM gateway.admins")
    assert row["hash"].startswith("$argon2id$")
    assert await admins.prove(old)


@pytest.mark.parametrize(
    ("name", "role", "param"), [("", "admin", "name"), ("a b", "admin", "name"), ("a", "x", "role")]
)
async def test_a_bad_admin_is_refused_by_its_field(book, name, role, param):
    """Nothing is stored."""
    with pytest.raises(Refused) as refused:
        await book.create(name, role)
    assert refused.value.param == param
    assert await book.listing() == []


async def test_two_of_one_name_and_one_that_is_not_there_are_refused(book):
    """The second create, and any change of nobody."""
    await book.create("ada", "admin")
    with pytest.raises(Refused, match="already"):
        await book.create("ada", "viewer")
    with pytest.raises(NotFound):
        await book.rotate("nobody")


async def test_every_change_is_recorded_without_a_secret(book, postgres):
    """Before and after, by whom, and neither hash nor token."""
    made = await book.create("ada", "admin")
    await book.assign("ada", "viewer")
    await book.rotate("ada")
    await book.disable("ada")
    await book.delete(made["id"])
    rows = await postgres.fetch("SELECT * FROM gateway.admin_events ORDER BY id")
    acts = [row["action"].removeprefix("admin.") for row in rows]
    assert acts == ["create", "assign", "rotate", "disable", "delete"]
    text = str([dict(row) for row in rows])
    assert "argon2" not in text
    assert made["token"] not in text
    assert lookup_of(made["token"]) not in text


async def test_a_session_ends_with_the_token_it_rests_on(book, admins, sessions):
    """Rotation ends it; so do disabling and a role that may not look at pages."""
    for act in (book.rotate, book.disable, lambda name: book.assign(name, "metrics")):
        name = f"a{id(act)}"
        officer = await admins.prove((await book.create(name, "admin"))["token"])
        secret = await sessions.open(officer, None)
        assert (await sessions.find(secret)).officer == officer
        await act(name)
        assert await sessions.find(secret) is None


async def test_a_session_is_idle_too_long_and_over_in_the_end(postgres, admins):
    """Rest ends it, and so does its age."""
    sessions = Sessions(postgres, admins, 1800)
    officer = await admins.prove(OWN)
    for column in ("seen_at = now() - interval '31 minutes'", "expires_at = now()"):
        secret = await sessions.open(officer, "127.0.0.1")
        assert await sessions.find(secret)
        await postgres.fetch(f"UPDATE gateway.admin_sessions SET {column}")
        assert await sessions.find(secret) is None


async def test_sessions_of_one_credential_are_bounded_and_their_secrets_unknown(
    postgres, admins, sessions
):
    """The oldest end; the table has digests alone."""
    officer = await admins.prove(OWN)
    secrets = [await sessions.open(officer, None) for _ in range(MOST + 5)]
    rows = await postgres.fetch("SELECT * FROM gateway.admin_sessions")
    assert len(rows) == MOST
    assert await sessions.find(secrets[-1])
    assert await sessions.find(secrets[0]) is None
    assert not any(secret in str(list(map(dict, rows))) for secret in secrets)


async def test_a_session_of_a_settings_token_ends_when_the_setting_changes(postgres, sessions):
    """Another process with another token does not honor it."""
    first = Admins(postgres, Secrets(), {OWN: ("operator", Role.ADMIN)})
    secret = await sessions.open(await first.prove(OWN), None)
    later = Admins(postgres, Secrets(), {"another token": ("operator", Role.ADMIN)})
    assert await Sessions(postgres, later, 1800).find(secret) is None


async def test_a_session_of_a_provider_ends_where_none_is_set_any_more(postgres, admins):
    """With OIDC switched off nobody is left inside by it."""
    honoring = Sessions(postgres, admins, 1800, outsiders=True)
    secret = await honoring.open(Officer("oidc:ann", Role.VIEWER, "oidc:1"), None)
    found = await honoring.find(secret)
    assert found is not None
    assert found.officer.role is Role.VIEWER
    assert await Sessions(postgres, admins, 1800).find(secret) is None


@pytest.mark.parametrize("away", ["shut", "swallow"])
async def test_a_scrape_is_answered_for_a_while_where_postgresql_is_away(book, database, away):
    """It is what tells of the outage; nothing else is, nor a token that was not seen before."""
    token, other = [(await book.create(name, "metrics"))["token"] for name in ("a", "b")]
    async with (
        open_door(database) as door,
        open_bridge() as bridge,
        open_postgres(bridge, door.url, size=2) as postgres,
    ):
        admins = Admins(postgres, Secrets(), {})
        assert await admins.prove_for_scrape(token)
        getattr(door, away)()
        with trio.fail_after(5):
            found = await admins.prove_for_scrape(token)
            assert found is not None
            assert found.role is Role.METRICS
            with pytest.raises(StoreUnavailable):
                await admins.prove_for_scrape(other)


async def test_a_token_that_was_refused_is_not_remembered_for_the_scrape(book, database):
    """What was heard of it last counts."""
    token = (await book.create("a", "metrics"))["token"]
    async with (
        open_door(database) as door,
        open_bridge() as bridge,
        open_postgres(bridge, door.url, size=2) as postgres,
    ):
        admins = Admins(postgres, Secrets(), {})
        assert await admins.prove_for_scrape(token)
        await book.disable("a")
        assert await admins.prove_for_scrape(token) is None
        door.shut()
        with pytest.raises(StoreUnavailable):
            await admins.prove_for_scrape(token)


async def test_logins_wait_after_failures_of_an_account_or_an_address(postgres):
    """The one at its own bound, the other at a larger one; success clears the account."""
    logins = Logins(postgres)
    for _ in range(ACCOUNT_MOST):
        assert await logins.wait("a", "10.0.0.1") == 0
        await logins.failed("a", "10.0.0.1")
    assert 0 < await logins.wait("a", "10.0.0.1") <= 900
    assert await logins.wait("a", "10.0.0.2") == 0  # nobody locks an account from elsewhere
    assert await logins.wait("b", "10.0.0.1") == 0
    await logins.succeeded("a", "10.0.0.1")
    assert await logins.wait("a", "10.0.0.1") == 0
    for number in range(CLIENT_MOST):
        await logins.failed(f"other{number}", "10.0.0.1")
    assert await logins.wait("b", "10.0.0.1") > 0
    await postgres.fetch("UPDATE gateway.login_failures SET since = now() - interval '16 minutes'")
    assert await logins.wait("b", "10.0.0.1") == 0


async def test_an_admin_is_not_over_when_it_is_made_or_rotated(book, postgres):
    """A token that would be dead from birth is refused, and says which field is at fault."""
    with pytest.raises(Refused) as caught:
        await book.create("ada", "viewer", datetime.now(UTC))
    assert caught.value.param == "expires_at"
    assert await book.listing() == []
    await book.create("ada", "viewer", datetime.now(UTC) + timedelta(days=1))
    await postgres.fetch("UPDATE gateway.admins SET expires_at = now()")
    with pytest.raises(Unfit) as caught:
        await book.rotate("ada")
    assert caught.value.param == "admin"


async def test_there_are_no_more_admins_than_a_list_has_room_for(book, postgres):
    """One more is refused, and comes in once another is deleted."""
    await postgres.fetch(
        "INSERT INTO gateway.admins (id, name, role, lookup, hash)"
        " SELECT 'adm_' || n, 'a' || n, 'viewer', 'l' || n, '' FROM generate_series(1, $1::int) n",
        admins_module.MOST,
    )
    with pytest.raises(Unfit, match="there are 1000 admins already"):
        await book.create("ada", "admin")
    await book.delete("a1")
    await book.create("ada", "admin")
    assert len(await book.listing()) == admins_module.MOST
