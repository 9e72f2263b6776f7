"""`trio-gateway admin ...` on a real installation."""

import pytest

from trio_gateway.core.officers import TOKEN_PREFIX


def test_an_admin_lives_from_create_to_delete(cli):
    """Create, list, show, assign, rotate, disable, enable, delete: the token is seen once each."""
    made = cli("admin", "create", "ada", "--role", "viewer", "--expires", "90d", "--json").json
    assert list(made)[:3] == ["id", "name", "token"]
    assert made["token"].startswith(TOKEN_PREFIX)
    (listed,) = cli("admin", "list", "--json").json
    assert (listed["name"], listed["role"], listed["state"]) == ("ada", "viewer", "active")
    shown = cli("admin", "show", made["id"], "--json")
    for hidden in ("token", "hash", "lookup"):
        assert hidden not in shown.json
    assert cli("admin", "assign", "ada", "--role", "admin", "--json").json["role"] == "admin"
    rotated = cli("admin", "rotate", "ada", "--json").json
    assert rotated["token"] != made["token"]
    assert cli("admin", "disable", "ada", "--json").json["state"] == "disabled"
    assert cli("admin", "enable", "ada", "--json").json["state"] == "active"
    assert cli("admin", "delete", "ada", "--json").json["deleted"] is True
    assert cli("admin", "list").out.startswith("There is no admin.")
    acts = cli("audit", "--acts", "--json")
    assert [act["action"] for act in acts.json] == [
        "admin.delete",
        "admin.enable",
        "admin.disable",
        "admin.rotate",
        "admin.assign",
        "admin.create",
    ]
    for token in (made["token"], rotated["token"]):
        assert token not in acts.out


def test_people_are_told_to_keep_the_token(cli):
    """In words, with the token on a line of its own."""
    said = cli("admin", "create", "ada", "--role", "admin").out
    assert "shown this once" in said
    (token,) = [line.strip() for line in said.splitlines() if line.startswith(f"  {TOKEN_PREFIX}")]
    assert token not in cli("admin", "list").out


@pytest.mark.parametrize(
    ("words", "code", "expected"),
    [
        (("create", "a b", "--role", "admin"), 1, "name"),
        (("create", "ada", "--role", "king"), 2, "--role"),
        (("create", "ada"), 2, "--role"),
        (("rotate", "ghost"), 1, "ghost"),
        (("delete", "ghost"), 1, "ghost"),
    ],
)
def test_what_cannot_be_is_refused_in_a_sentence(cli, words, code, expected):
    """Exit 1 for what is refused, 2 for wrong usage."""
    cli("admin", *words).refused(expected, code=code)


def test_a_name_is_taken_once(cli):
    """The second is refused."""
    cli("admin", "create", "ada", "--role", "admin")
    cli("admin", "create", "ada", "--role", "viewer").refused("ada", "already")


def test_an_admin_is_extended(cli):
    """The token stays; the expiry is another, or none."""
    cli("admin", "create", "ada", "--role", "viewer", "--expires", "1d")
    row = cli("admin", "update", "ada", "--expires", "2099-01-01", "--json").json
    assert row["expires_at"] == "2099-01-01T00:00:00+00:00"
    assert cli("admin", "update", "ada", "--expires", "never", "--json").json["expires_at"] is None
    assert cli("admin", "update", "ada", "--expires", "2020-01-01", "--json").json["state"] == (
        "expired"
    )
    cli("admin", "rotate", "ada").refused("has expired")
    cli("admin", "update", "ada", "--expires", "0001-01-01").refused("--expires: must be a time")
    cli("admin", "create", "operator", "--role", "admin").refused("the installation's own token")
