"""What the doctor says of the admin listener, of secrets and of this machine."""

import asyncio
import json
import tempfile
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.cli.sickroom import found_by, http_server, silence, state_of
from trio_gateway.cli.check_machine import MEBIBYTE, check_disk
from trio_gateway.clients.postgres import run_once

ADMIN = """
INSERT INTO gateway.admins (id, name, role, lookup, hash, expires_at, disabled_at)
VALUES ($1, $1, $2, $1, 'x', now() + make_interval(hours => $3),
    CASE WHEN $4 THEN now() END)
"""
WEAK = "hidden-token"
STRONG = "hidden-" + "0123456789abcdef" * 2


def admin(database, name, role="admin", hours=1, *, disabled=False):
    asyncio.run(run_once(database, ADMIN, name, role, hours, disabled))


@pytest.fixture
def put(monkeypatch):
    """Set settings by their names without the prefix."""

    def put(**values):
        for name, value in values.items():
            monkeypatch.setenv(f"TRIO_GATEWAY_{name}", value)

    return put


def test_somebody_must_be_able_to_change_things(cli, database, put):
    """An admin in the database or a token in the settings; viewers and disabled ones do not do."""
    assert state_of(cli, "admins") == ("warn", "there is none")
    admin(database, "eve", role="viewer")
    admin(database, "bob", disabled=True)
    state, detail = state_of(cli, "admins")
    assert (state, "nobody of role admin" in detail) == ("warn", True)
    put(ADMIN_TOKEN=STRONG)
    assert state_of(cli, "admins")[0] == "ok"
    admin(database, "amy")
    assert state_of(cli, "admins") == ("ok", "1 with role admin, 3 tokens in all")


def test_admins_that_expired_are_named(cli, database):
    """The first few; those that are disabled are over anyhow."""
    admin(database, "amy")
    assert "expired admins" not in found_by(cli)
    for number in range(7):
        admin(database, f"old{number}", hours=-1)
    admin(database, "off", hours=-1, disabled=True)
    state, detail = state_of(cli, "expired admins")
    assert (state, detail.endswith("old0, old1, old2, old3, old4 and others")) == ("warn", True)


def test_weak_tokens_are_told_and_never_shown(cli, put):
    """Short ones by their settings' names, and one token for two purposes."""
    put(METRICS_TOKEN=WEAK, ADMIN_TOKEN=STRONG)
    found = found_by(cli)
    assert found["tokens"]["state"] == "warn"
    assert found["tokens"]["detail"].endswith("TRIO_GATEWAY_METRICS_TOKEN")
    put(METRICS_TOKEN=STRONG)
    again = found_by(cli)
    assert again["settings"]["state"] == "fail"
    assert "METRICS_TOKEN" in again["settings"]["detail"]
    put(METRICS_TOKEN=STRONG[::-1])
    assert state_of(cli, "tokens")[0] == "ok"
    text = cli("doctor")
    assert "hidden" not in json.dumps([found, again]) + text.out + text.err


def test_secret_files_must_be_closed_to_others(cli, monkeypatch):
    """Open files in an open folder are told by their settings; a closed folder is enough."""
    with tempfile.TemporaryDirectory(dir="/tmp") as name:
        folder, file = Path(name), Path(name) / "token"
        file.write_text(STRONG)
        file.chmod(0o644)
        monkeypatch.setenv("TRIO_GATEWAY_ADMIN_TOKEN_FILE", str(file))
        assert state_of(cli, "secret files")[0] == "ok"
        folder.chmod(0o755)
        finding = found_by(cli)["secret files"]
        assert finding["state"] == "warn"
        assert finding["detail"].endswith("TRIO_GATEWAY_ADMIN_TOKEN_FILE")
        file.chmod(0o640)
        assert state_of(cli, "secret files")[0] == "ok"


def test_an_admin_listener_without_tls_is_told(cli, put):
    """Reached from elsewhere, it wants an https:// address in front."""
    put(ADMIN_ALLOW_REMOTE="true")
    assert state_of(cli, "admin address")[0] == "warn"
    put(ADMIN_PUBLIC_URL="http://admin.example")
    assert state_of(cli, "admin address")[0] == "warn"
    put(ADMIN_PUBLIC_URL="https://admin.example")
    assert "admin address" not in found_by(cli)


@pytest.mark.parametrize(
    ("name", "value", "check"),
    [
        ("TRUSTED_PROXIES", "10.0.0.1, 0.0.0.0/0", "trusted proxies"),
        ("TRUSTED_PROXIES", "::/0", "trusted proxies"),
        ("CORS_ORIGINS", "https://a.example, *", "cors"),
    ],
)
def test_settings_that_trust_everybody_are_told(cli, put, name, value, check):
    """Each is understood, and hardly ever meant."""
    put(**{name: value})
    found = found_by(cli)
    assert (found["settings"]["state"], found[check]["state"]) == ("ok", "warn")


def test_settings_that_name_somebody_are_fine(cli, put):
    """One network, one page."""
    put(TRUSTED_PROXIES="10.0.0.0/8", CORS_ORIGINS="https://a.example")
    assert not {"trusted proxies", "cors"} & set(found_by(cli))


@pytest.fixture
def provider(put):
    """Set an OpenID provider on loopback by its port."""

    def at(port):
        put(
            OIDC_ISSUER=f"http://127.0.0.1:{port}",
            OIDC_CLIENT_ID="dashboard",
            OIDC_CLIENT_SECRET="hidden",
            OIDC_ADMINS="operators",
            ADMIN_PUBLIC_URL="https://admin.example",
        )
        return f"http://127.0.0.1:{port}"

    return at


def test_the_provider_must_answer_by_its_name(cli, provider):
    """What the dashboard reads at each login is read once."""
    fields: dict[str, str] = {}
    with http_server(200, fields) as port:
        fields["issuer"] = provider(port) + "/"
        found = found_by(cli)
        assert (found["oidc"]["state"], found["admins"]["state"]) == ("ok", "ok")
        fields["issuer"] = "http://another.example"
        state, detail = state_of(cli, "oidc")
        assert (state, "another name" in detail) == ("warn", True)


def test_a_provider_that_is_away_is_a_warning(cli, provider):
    """Refusing, failing or silent: admins' own tokens work meanwhile."""
    provider(1)
    assert state_of(cli, "oidc")[0] == "warn"
    with http_server(500, {}) as port:
        provider(port)
        assert state_of(cli, "oidc")[0] == "warn"
    with silence() as port:
        provider(port)
        state, detail = state_of(cli, "oidc")
        assert (state, "does not answer" in detail) == ("warn", True)


def test_a_temporary_folder_is_needed(cli, tmp_path, monkeypatch):
    """The workers share their metrics there, and uploads pass through."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "never made"))
    state, detail = state_of(cli, "temporary folder")
    assert (state, "No such file" in detail) == ("fail", True)


@pytest.mark.parametrize(("free", "state"), [(2000, "ok"), (500, "warn"), (50, "fail")])
def test_room_on_the_disk_is_judged(monkeypatch, tmp_path, free, state):
    """By what the system says is free."""
    usage = SimpleNamespace(free=free * MEBIBYTE)
    monkeypatch.setattr("shutil.disk_usage", lambda _: usage)
    assert check_disk(tmp_path / "not there yet").state == state
    assert check_disk(tmp_path).state == state
