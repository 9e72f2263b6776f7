"""`trio-gateway doctor` as a whole: what it looks at, how it answers, and what it never does."""

import asyncio
import json
import time
from urllib.parse import urlsplit, urlunsplit

import pytest
import redis
import trio

from tests.cli.sickroom import found_by, ollama, report, silence, state_of
from trio_gateway.cli import check_bounds
from trio_gateway.cli.check_bounds import checked
from trio_gateway.cli.finding import ahead, clock, ok
from trio_gateway.clients.blobs import open_blobs
from trio_gateway.clients.bridge import open_bridge
from trio_gateway.clients.postgres import open_postgres, run_once
from trio_gateway.services.files.marker import check_marker

BOUND = check_bounds.LIMIT  # seconds, as the doctor itself has it
GOOD = {
    "settings": "ok",
    "postgres": "ok",
    "postgres encoding": "ok",
    "postgres durability": "ok",
    "postgres clock": "ok",
    "postgres pooler": "ok",
    "postgres connections": "ok",
    "migrations": "ok",
    "notifications": "ok",
    "keys": "ok",
    "ledger": "ok",
    "partitions": "ok",
    "redis": "ok",
    "redis memory": "ok",
    "redis persistence": "ok",
    "redis latency": "ok",
    "redis clock": "ok",
    "workers": "ok",
    "worker versions": "ok",
    "worker clocks": "ok",
    "ollama": "ok",
    "exposure": "ok",
    "admins": "warn",  # until the first start of `serve`
    "blobs": "ok",
    "file limit": "ok",
    "disk": "ok",
    "temporary folder": "ok",
}


@pytest.fixture
def backend(monkeypatch):
    """An Ollama without a fault."""
    with ollama("0.33.0") as port:
        monkeypatch.setenv("OLLAMA_BASE_URL", f"http://127.0.0.1:{port}")
        yield


def sql(database, query):
    asyncio.run(run_once(database, query))


@pytest.mark.usefixtures("same_day")
def test_a_good_installation_is_found_good(cli, backend, redis_url):
    """Every check is there and fine; a missing key and a missing worker are advice alone."""
    found = {check: each["state"] for check, each in found_by(cli).items()}
    assert (found["keys"], found["workers"]) == ("warn", "warn")
    assert "fail" not in found.values()
    cli("tenant", "create", "acme")
    cli("key", "create", "--tenant", "acme")
    report(redis_url)
    assert {check: each["state"] for check, each in found_by(cli).items()} == GOOD


def test_people_get_groups_advice_and_a_sum(cli, backend):
    """One heading for each part, each finding on a line, the advice below, a count at the end."""
    answer = cli("doctor")
    assert answer.code == 0
    lines = answer.out.splitlines()
    for title in ("Settings", "PostgreSQL", "Redis", "Workers", "Ollama", "This machine"):
        assert title in lines
    at = lines.index("  warn  workers: none reports")
    assert lines[at + 1].startswith("        Start `trio-gateway serve`")
    assert lines[-1].endswith("3 to look at, 0 failed")
    assert answer.err == ""


def test_what_stops_calls_is_told_in_one_run(cli, monkeypatch):
    """No Ollama, no Redis: advice for each, and exit 1."""
    monkeypatch.setenv("OLLAMA_BASE_URL", "http://127.0.0.1:1")
    monkeypatch.setenv("REDIS_URL", "redis://127.0.0.1:1/0")
    monkeypatch.setenv("TRIO_GATEWAY_DATABASE_LISTEN_URL", "postgresql://x@127.0.0.1:1/x")
    found = found_by(cli)
    failed = {check for check, each in found.items() if each["state"] == "fail"}
    assert failed == {"redis", "ollama", "notifications", "postgres pooler"}
    assert "workers" not in found
    answer = cli("doctor")
    assert (answer.code, "4 of" in answer.err) == (1, True)
    assert "  FAIL  redis: " in answer.out


def test_bad_settings_are_told_first_and_alone(cli, monkeypatch):
    """Nothing else is looked at while the settings are not understood."""
    monkeypatch.setenv("TRIO_GATEWAY_BOGUS", "1")
    found = found_by(cli)
    assert set(found) == {"settings"}
    assert "TRIO_GATEWAY_BOGUS" in found["settings"]["detail"]
    assert "  FAIL  settings: " in cli("doctor").out


def test_missing_addresses_are_told_each(cli, monkeypatch):
    """A store that is not named is a failure; the other one is looked at."""
    monkeypatch.delenv("REDIS_URL")
    found = found_by(cli)
    assert (found["redis"]["state"], found["postgres"]["state"]) == ("fail", "ok")
    monkeypatch.setenv("REDIS_URL", "redis://127.0.0.1:1/0")
    monkeypatch.delenv("DATABASE_URL")
    assert "is not set" in found_by(cli)["postgres"]["detail"]


def test_everything_silent_ends_in_time_without_a_secret(bare, monkeypatch):
    """Each wait is bounded, all run at once, and no password or token is in either answer."""
    with silence() as port:
        place = f"127.0.0.1:{port}"
        monkeypatch.setenv("DATABASE_URL", f"postgresql://u:hidden@{place}/x")
        monkeypatch.setenv("REDIS_URL", f"redis://:hidden@{place}/0")
        monkeypatch.setenv("OLLAMA_BASE_URL", ",".join([f"http://u:hidden@{place}"] * 20))
        for name, value in {
            "OIDC_ISSUER": f"http://{place}",
            "OIDC_CLIENT_ID": "dashboard",
            "OIDC_CLIENT_SECRET": "hidden",
            "OIDC_ADMINS": "operators",
            "ADMIN_PUBLIC_URL": "https://admin.example",
            "ADMIN_TOKEN": "hidden",
        }.items():
            monkeypatch.setenv(f"TRIO_GATEWAY_{name}", value)
        began = time.monotonic()
        found = found_by(bare)
        assert time.monotonic() - began < 20
        text = bare("doctor")
    states = {check: each["state"] for check, each in found.items()}
    assert (states["postgres"], states["redis"], states["ollama"]) == ("fail", "fail", "fail")
    assert states["oidc"] == "warn"
    assert place in found["postgres"]["detail"]
    assert "hidden" not in json.dumps(found) + text.out + text.err


def test_a_silent_bucket_ends_in_time(cli, database, monkeypatch):
    """The blob store's own patience is longer than the doctor's."""
    monkeypatch.setattr(check_bounds, "LIMIT", BOUND)
    with silence() as port:
        monkeypatch.setenv("TRIO_GATEWAY_BLOB_URL", "s3://bucket/prefix")
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{port}")
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "hidden")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hidden")
        began = time.monotonic()
        assert state_of(cli, "blobs")[0] == "fail"
        assert time.monotonic() - began < 20


def test_a_check_that_breaks_hides_no_other(cli, database, monkeypatch):
    """A database user without privileges: what cannot be read says so, the rest is there."""
    name = "limited_" + urlsplit(database).path.strip("/")
    sql(database, f"CREATE ROLE {name} LOGIN PASSWORD 'hidden'")
    try:
        parts = urlsplit(database)
        host = parts.netloc.rpartition("@")[2]
        monkeypatch.setenv(
            "DATABASE_URL", urlunsplit(parts._replace(netloc=f"{name}:hidden@{host}"))
        )
        found = found_by(cli)
    finally:
        sql(database, f"DROP ROLE {name}")
    assert found["migrations"]["state"] == "fail"
    assert "InsufficientPrivilege" in found["migrations"]["detail"]
    assert (found["postgres"]["state"], found["redis"]["state"]) == ("ok", "ok")
    assert "hidden" not in json.dumps(found)


async def test_the_text_of_an_unforeseen_error_is_not_shown():
    """Its name is; and a check that is fine is handed on as it is."""

    async def broken():
        raise ExceptionGroup("hidden", [RuntimeError("hidden")])

    async def fine():
        return [ok("it", "is")]

    (finding,) = await checked("it", broken)
    assert (finding.state, "RuntimeError" in finding.detail) == ("fail", True)
    assert "hidden" not in str(finding)
    assert await checked("it", fine) == [ok("it", "is")]


@pytest.mark.parametrize(("theirs", "skew"), [(100, 0), (103, 0), (99, -1), (106, 1), (100.5, 0)])
def test_what_a_reading_took_is_no_skew_of_a_clock(theirs, skew):
    """Another clock that was read between two readings of ours may agree for as long as that."""
    assert ahead(theirs, 100, 105) == skew


@pytest.mark.parametrize(
    ("skew", "state"), [(0.2, "ok"), (-0.9, "ok"), (5, "warn"), (-29, "warn"), (31, "fail")]
)
def test_clocks_are_judged_by_how_far_they_are_apart(skew, state):
    """Ahead and behind alike."""
    assert clock("x", skew).state == state


def test_a_running_gateway_is_believed_about_ollama(cli, redis_url, monkeypatch):
    """Where the gateway sees models, an Ollama that is out of sight is no failure."""
    monkeypatch.setenv("OLLAMA_BASE_URL", "http://127.0.0.1:1")
    with redis.Redis.from_url(redis_url) as memory:
        memory.set("tg:catalog:x:turn", "1")
        assert state_of(cli, "ollama")[0] == "fail"
        memory.set("tg:catalog:x", "[]")
        assert state_of(cli, "ollama")[0] == "warn"
        memory.delete("tg:catalog:x", "tg:catalog:x:turn")


def test_the_files_must_be_here(cli, database, tmp_path, monkeypatch):
    """Empty before the first start; then the store must be the marked one, and usable."""

    def blobs(url=None):
        if url is not None:
            monkeypatch.setenv("TRIO_GATEWAY_BLOB_URL", url)
        return found_by(cli)["blobs"]

    shared = tmp_path / "shared"
    assert blobs(shared.as_uri())["state"] == "ok"
    assert "empty" in blobs()["detail"]
    assert not shared.exists()

    async def start():
        async with open_bridge() as bridge, open_postgres(bridge, database, size=1) as postgres:
            assert await check_marker(postgres, open_blobs(shared.as_uri()))

    trio.run(start)
    assert (blobs()["state"], str(shared) in blobs()["detail"]) == ("ok", True)
    shared.chmod(0o750)
    assert (blobs()["state"], "other users" in blobs()["detail"]) == ("warn", True)
    for other in ("never made", "own"):
        if other == "own":
            (tmp_path / other).mkdir()
        found = blobs((tmp_path / other).as_uri())
        assert found["state"] == "fail"
        assert "TRIO_GATEWAY_BLOB_URL" in found["advice"]
    (tmp_path / "a file").touch()
    assert blobs((tmp_path / "a file").as_uri())["state"] == "fail"
    (shared / "markers").rename(shared / "kept")
    (shared / "markers").symlink_to("markers")
    found = blobs(shared.as_uri())
    assert (found["state"], "cannot be read" in found["detail"]) == ("fail", True)


def test_a_bucket_that_does_not_answer_is_a_failure(cli, database, monkeypatch):
    """It says where to look, and shows none of the keys."""
    monkeypatch.setenv("TRIO_GATEWAY_BLOB_URL", "s3://bucket/prefix")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "hidden")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hidden")
    found = found_by(cli)["blobs"]
    assert found["state"] == "fail"
    assert "hidden" not in json.dumps(found)


def test_the_help_says_what_the_exit_codes_mean(bare):
    """With examples, and without opening anything."""
    answer = bare("doctor", "--help")
    assert answer.code == 0
    for words in ("Exit codes:", "0  nothing fails", "1  something fails", "doctor --json"):
        assert words in answer.out
