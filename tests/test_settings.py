"""Settings: every bad value at once, and nothing started on half an address."""

import pytest

from trio_gateway import settings
from trio_gateway.installation import Hooks
from trio_gateway.quickstart import ServeOptions, serve_installation


def test_every_bad_value_is_reported_at_once():
    """One start shows an operator all there is to mend."""
    bad = {
        "OLLAMA_BASE_URL": "nowhere",
        "TRIO_GATEWAY_BACKEND_SLOTS": "many",
        "TRIO_GATEWAY_TRUSTED_PROXIES": "the proxy",
        "TRIO_GATEWAY_CORS_ORIGINS": "example",
        "TRIO_GATEWAY_LOG_LEVEL": "loud",
        "TRIO_GATEWAY_SLOTS": "1",
        "REDIS_URL_FILE": "/nowhere/at/all",
    }
    with pytest.raises(settings.BadSettings) as caught:
        settings.load(bad)
    assert all(any(name in line for line in caught.value.problems) for name in bad)


def test_a_secret_is_read_from_its_file(tmp_path):
    """NAME_FILE stands for NAME, and both together are refused."""
    (tmp_path / "url").write_text("postgresql://x/y\n")
    environ = {"DATABASE_URL_FILE": str(tmp_path / "url")}
    assert settings.load(environ).database_url == "postgresql://x/y"
    with pytest.raises(settings.BadSettings, match="both set"):
        settings.load(environ | {"DATABASE_URL": "postgresql://x/z"})


@pytest.mark.parametrize("name", ["DATABASE_URL", "REDIS_URL"])
def test_serve_refuses_one_store_alone(monkeypatch, capsys, name):
    """The other store would be that of another installation."""
    for variable in ("DATABASE_URL", "REDIS_URL"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv(name, "redis://127.0.0.1:1/0")
    hooks = Hooks(upgrade=lambda _: None, first_key=lambda _: ("", None))
    assert serve_installation(ServeOptions(bind="127.0.0.1:0"), hooks) == 1
    error = capsys.readouterr().err
    assert "set both DATABASE_URL and REDIS_URL" in error
    assert error.count("\n") == 1
