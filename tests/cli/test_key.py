"""`trio-gateway key ...` on a real installation."""

import asyncio
from datetime import UTC, datetime, timedelta

import pytest

from trio_gateway.clients.postgres import run_once
from trio_gateway.core.keys import KEY_LENGTH


@pytest.fixture
def acme(cli):
    cli(
        *("tenant", "create", "acme", "--models", "a,b", "--budget", "100"),
        *("--budget-period", "day", "--requests-per-minute", "60"),
    )
    return cli


def test_a_key_lives_from_create_to_revoke(acme):
    """Create, list, show, update, rotate, disable, enable, revoke: one id throughout."""
    made = acme("key", "create", "--tenant", "acme", "--name", "k", "--json").json
    assert list(made)[:3] == ["id", "public_id", "key"]
    assert len(made["key"]) == KEY_LENGTH
    assert made["public_id"] in made["key"]
    assert (made["name"], made["tenant"], made["models"]) == ("k", "acme", None)
    (listed,) = acme("key", "list", "--tenant", "acme", "--json").json
    assert listed["id"] == made["id"]
    assert "key" not in listed
    changed = acme(
        *("key", "update", "k", "--models", "A", "--budget", "7", "--budget-period", "day"),
        *("--expires", "2099-12-31", "--name", "k2", "--json"),
    ).json
    assert (changed["models"], changed["budget"], changed["name"]) == (["a:latest"], 7, "k2")
    assert changed["expires_at"] == "2099-12-31T00:00:00+00:00"
    lifted = acme(
        *("key", "update", made["id"], "--all-models", "--budget", "none"),
        *("--expires", "never", "--json"),
    ).json
    assert (lifted["models"], lifted["budget"], lifted["expires_at"]) == (None, None, None)
    rotated = acme("key", "rotate", "k2", "--overlap", "24h", "--json").json
    assert (rotated["id"], rotated["previous_public_id"]) == (made["id"], made["public_id"])
    assert rotated["key"] != made["key"]
    assert acme("key", "disable", "k2", "--json").json["state"] == "disabled"
    assert acme("key", "enable", "k2", "--json").json["state"] == "active"
    for _ in range(2):
        gone = acme("key", "revoke", rotated["public_id"], "--reason", "r", "--json").json
        assert gone["state"] == "revoked"
    assert acme("key", "show", made["id"], "--json").json["revoked_at"] is not None
    acme("key", "rotate", "k2").refused("revoked")


def test_people_see_the_key_once(acme):
    """The text for people holds the key at creation and rotation, and never later."""
    answer = acme("key", "create", "--tenant", "acme", "--name", "k")
    (text,) = [word for word in answer.out.split() if word.startswith("sk-tg-")]
    assert "this once" in answer.out
    assert "works until" not in answer.out
    for command in ("list", "show k", "update k --name k", "disable k", "enable k"):
        assert text not in acme("key", *command.split()).out
    answer = acme("key", "rotate", "k")
    assert "works until" in answer.out
    assert text not in answer.out
    assert "works until" not in acme("key", "rotate", "k", "--overlap", "0").out
    assert "is revoked" in acme("key", "revoke", "k").out
    assert "There is no such key" in acme("key", "list", "--match", "xyz").out


def test_a_whole_key_names_itself_and_is_not_echoed(acme):
    """A leaked key can be revoked by its text; a foreign one is not repeated in the error."""
    made = acme("key", "create", "--tenant", "acme", "--json").json
    assert acme("key", "show", made["key"], "--json").json["id"] == made["id"]
    answer = acme("key", "show", made["key"][:-1] + "!")
    answer.refused("there is no key")
    assert made["key"][:-1] not in answer.err


@pytest.mark.parametrize(
    ("option", "words"),
    [
        (["--budget", "101", "--budget-period", "day"], ["--budget:", "acme's 100 a day"]),
        (["--requests-per-minute", "61"], ["--requests-per-minute:", "acme's 60"]),
        (["--models", "a,c"], ["--models:", "c:latest", "a:latest, b:latest"]),
    ],
)
def test_what_would_widen_the_tenant_is_refused_by_the_options_name(acme, option, words):
    """The line names the option, the value and the tenant's."""
    acme("key", "create", "--tenant", "acme", *option).refused(*words)
    made = acme("key", "create", "--tenant", "acme", "--json").json
    acme("key", "update", made["id"], *option).refused(*words)


def test_durations_and_instants_are_understood(acme):
    """30d is thirty days from now; a time without a zone is UTC."""

    def expiry(when):
        answer = acme("key", "create", "--tenant", "acme", "--expires", when, "--json")
        return datetime.fromisoformat(answer.json["expires_at"])

    now = datetime.now(UTC)
    for when, span in (("30d", 720), ("1w", 168), ("1d12h", 36), ("90m", 1.5)):
        instant = expiry(when)
        assert abs(instant - now - timedelta(hours=span)) < timedelta(minutes=1)
    assert expiry("2099-01-02T03:04:05") == datetime(2099, 1, 2, 3, 4, 5, tzinfo=UTC)
    assert expiry("2099-01-02T03:04:05+02:00") == datetime(2099, 1, 2, 1, 4, 5, tzinfo=UTC)


@pytest.mark.parametrize("when", ["0001-01-01", "9999-12-31", "0001-01-01T00:00+05:00", "0d"])
def test_an_end_that_is_none_is_refused_by_the_options_name(acme, when):
    """Of keys, admins and increases; and nothing is made."""
    for args in (
        ("key", "create", "--tenant", "acme", "--expires"),
        ("admin", "create", "ada", "--role", "viewer", "--expires"),
    ):
        acme(*args, when).refused("--expires: must be")
    acme("tenant", "extend", "acme", "--tokens", "5", "--until", when).refused("--until: must be")
    assert acme("key", "list", "--json").json == acme("admin", "list", "--json").json == []
    acme("key", "create", "--tenant", "acme", "--expires", "2020-01-01").refused(
        "--expires: must be in the future"
    )


@pytest.mark.parametrize("at", ["infinity", "-infinity", "0001-01-01", "294276-12-31"])
def test_any_expiry_that_is_stored_can_be_shown(acme, database, at):
    """For people and for programs."""
    made = acme("key", "create", "--tenant", "acme", "--name", "k", "--json").json
    spoil = "UPDATE gateway.api_keys SET expires_at = $1::text::timestamptz, budget = 5"
    asyncio.run(run_once(database, spoil, at))
    state = "active" if at in {"infinity", "294276-12-31"} else "expired"
    for args in (("key", "list"), ("key", "show", made["id"]), ("audit", "--acts")):
        assert acme(*args).code == 0
    assert acme("key", "show", "k", "--json").json["state"] == state
    acme("key", "update", "k", "--budget", "6")
    assert acme("key", "rotate", "k").code == (0 if state == "active" else 1)
    assert acme("key", "update", "k", "--expires", "never", "--json").json["state"] == "active"


def test_refusals_of_keys_are_one_line(acme):
    """Unknown tenants and keys, and names that mean several keys."""
    acme("key", "create", "--tenant", "ghost").refused("there is no tenant 'ghost'")
    acme("key", "list", "--tenant", "ghost").refused("there is no tenant 'ghost'")
    for verb in ("show", "revoke", "rotate", "disable", "enable"):
        acme("key", verb, "ghost").refused("there is no key 'ghost'")
    for _ in range(2):
        acme("key", "create", "--tenant", "acme", "--name", "k")
    acme("key", "revoke", "k", "--tenant", "acme").refused("2 keys are named 'k'; use an id")
    acme("key", "show", "").refused("a key is named by")
