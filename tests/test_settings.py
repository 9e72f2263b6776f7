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
        "DATABASE_URL": "mysql://u:hidden@h/d",
        "TRIO_GATEWAY_DATABASE_LISTEN_URL": "hidden",
        "TRIO_GATEWAY_BLOB_URL": "file://hidden/folder",
        "TRIO_GATEWAY_KEEP_ALIVE": "hidden",
    }
    with pytest.raises(settings.BadSettings) as caught:
        settings.load(bad)
    assert all(any(name in line for line in caught.value.problems) for name in bad)
    assert "hidden" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "good", "bad"),
    [
        (
            "DATABASE_URL",
            ["postgresql://u:p@h/d", "postgres://h", "postgresql:///d?host=/run", ""],
            ["hidden", "http://hidden", "postgresql://", "postgresql+asyncpg://hidden", " hidden"],
        ),
        (
            "REDIS_URL",
            ["redis://h:6379/0", "rediss://:p@h", "unix:///run/redis.sock?db=1", ""],
            ["hidden", "h:6379", "http://hidden", "redis://"],
        ),
        (
            "TRIO_GATEWAY_BLOB_URL",
            ["file:///var/lib/blobs", "file:///a%20b", "s3://bucket", "s3://bucket/a/b/", ""],
            ["/hidden", "file://hidden", "file:hidden", "file:///h?idden", "s3://", "s3://HIDDEN"],
        ),
        (
            "TRIO_GATEWAY_KEEP_ALIVE",
            ["5m", "1h30m", "-1", "0", "300", "1.5h", "-1s", "90.5", "250ms"],
            ["", "m", "5 m", "hidden", "1d", "inf", "nan", "1e3", "5m5", "--1", "5m\n"],
        ),
    ],
)
def test_an_address_is_read_before_anything_starts(name, good, bad):
    """What cannot be one is refused by name, and its text, which may hold a password, not shown."""
    for value in good:
        settings.load({name: value})
    for value in bad:
        with pytest.raises(settings.BadSettings, match=f"^{name}: must be ") as caught:
            settings.load({name: value})
        assert "hidden" not in str(caught.value).lower()


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
    scheme = "redis" if name == "REDIS_URL" else "postgresql"
    monkeypatch.setenv(name, f"{scheme}://127.0.0.1:1/0")
    hooks = Hooks(upgrade=lambda _: None, first_key=lambda _: ("", None))
    assert serve_installation(ServeOptions(bind="127.0.0.1:0"), hooks) == 1
    error = capsys.readouterr().err
    assert "set both DATABASE_URL and REDIS_URL" in error
    assert error.count("\n") == 1


def test_the_token_of_the_scrape_is_not_that_of_an_admin():
    """Whoever reads numbers would be able to change everything."""
    tokens = {"TRIO_GATEWAY_ADMIN_TOKEN": "same", "TRIO_GATEWAY_METRICS_TOKEN": "same"}
    with pytest.raises(settings.BadSettings, match="METRICS_TOKEN must be another"):
        settings.load(tokens)
