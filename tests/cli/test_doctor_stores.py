"""What the doctor says of PostgreSQL and Redis, each with its real cause."""

import asyncio
import contextlib
import socket
import subprocess
import time
from datetime import UTC, datetime, timedelta
from urllib.parse import parse_qs, urlsplit, urlunsplit

import pytest
import redis

from deploy.staging.programs import free_port
from tests.cli.sickroom import found_by, relay, report, state_of, to_redis
from trio_gateway.cli import redis_line
from trio_gateway.cli.check_redis import _server
from trio_gateway.clients.postgres import run_once
from trio_gateway.embedded.redis import find_server

LISTEN = "TRIO_GATEWAY_DATABASE_LISTEN_URL"


def sql(database, query):
    return asyncio.run(run_once(database, query))


def named(database):
    return urlsplit(database).path.strip("/")


@pytest.mark.parametrize(
    ("setting", "check", "state", "words"),
    [
        ("default_transaction_read_only = on", "postgres", "fail", "read-only"),
        ("synchronous_commit = off", "postgres durability", "warn", "synchronous_commit"),
    ],
)
def test_a_database_that_is_badly_set_is_told(cli, database, setting, check, state, words):
    """Read-only transactions stop calls; a commit that does not wait is a warning."""
    sql(database, f"ALTER DATABASE {named(database)} SET {setting}")
    found = state_of(cli, check)
    assert (found[0], words in found[1]) == (state, True)


def test_a_server_that_may_lose_what_it_wrote_is_told(cli, stores):
    """Set for the whole server, and set back at the end."""
    sql(stores.database_url, "ALTER SYSTEM SET full_page_writes = off")
    try:
        sql(stores.database_url, "SELECT pg_reload_conf()")
        deadline = time.monotonic() + 60
        while sql(stores.database_url, "SHOW full_page_writes")[0]["full_page_writes"] == "on":
            assert time.monotonic() < deadline
        state, detail = state_of(cli, "postgres durability")
        assert (state, "full_page_writes" in detail) == ("warn", True)
    finally:
        sql(stores.database_url, "ALTER SYSTEM RESET full_page_writes")
        sql(stores.database_url, "SELECT pg_reload_conf()")


def test_an_encoding_that_is_not_utf8_is_a_failure(cli, stores, database, monkeypatch):
    """Such as that of a database made in a Latin-1 locale."""
    name = f"{named(database)}_latin"
    locale = "TEMPLATE template0 ENCODING 'LATIN1' LC_COLLATE 'C' LC_CTYPE 'C'"
    sql(stores.database_url, f"CREATE DATABASE {name} {locale}")
    try:
        monkeypatch.setenv("DATABASE_URL", stores.database(name))
        state, detail = state_of(cli, "postgres encoding")
        assert (state, "LATIN1" in detail) == ("fail", True)
    finally:
        sql(stores.database_url, f"DROP DATABASE {name} WITH (FORCE)")


@pytest.mark.parametrize(("limit", "state"), [(50, "ok"), (26, "warn"), (20, "fail")])
def test_workers_that_open_more_than_there_is_are_told(cli, database, redis_url, limit, state):
    """Two workers on one machine want 24 connections: more than all, more than most, or fewer."""
    sql(database, f"ALTER DATABASE {named(database)} CONNECTION LIMIT {limit}")
    report(redis_url)
    report(redis_url, slot="w1")
    found = state_of(cli, "postgres connections")
    assert found == (state, f"2 workers open up to 24 of the {limit} there may be")


@pytest.mark.parametrize(
    ("version", "words", "advice"),
    [
        ("9999", "it is of a newer release", "Upgrade trio-gateway"),
        ("0001", "this release expects", "trio-gateway migrate"),
        (None, "is at none", "trio-gateway migrate"),
    ],
)
def test_another_version_of_the_schema_is_a_failure(cli, database, version, words, advice):
    """Newer: this program is old. Older or none: the migrations have not run."""
    if version is None:
        sql(database, "DROP SCHEMA gateway CASCADE")
    else:
        sql(database, f"UPDATE gateway.alembic_version SET version_num = '{version}'")
    found = found_by(cli)
    assert found["migrations"]["state"] == "fail"
    assert words in found["migrations"]["detail"]
    assert advice in found["migrations"]["advice"]
    # what needs this release's tables is not asked
    assert not {"keys", "partitions", "admins", "blobs"} & set(found)


def test_a_schema_that_lost_a_table_is_a_failure(cli, database):
    """It is at this release by its version, and yet cannot be used."""
    sql(database, "DROP TABLE gateway.api_keys CASCADE")
    assert state_of(cli, "keys")[0] == "fail"


@pytest.mark.usefixtures("same_day")
def test_missing_partitions_and_stray_rows_are_told(cli, database):
    """By name, and with the rows that have ended up in no month."""
    assert state_of(cli, "ledger")[1].startswith("4 partitions, ")
    last = (datetime.now(UTC).replace(day=1) + timedelta(days=63)).strftime("%Y%m")
    sql(database, f"DROP TABLE gateway.ledger_{last}")
    sql(
        database,
        "INSERT INTO gateway.audit_log (code, status_code, method, path, request_id, at)"
        " VALUES ('x', 403, 'GET', '/', 'r', '2001-01-01')",
    )
    found = found_by(cli)
    assert (found["partitions"]["state"], found["partitions"]["detail"]) == (
        "warn",
        f"missing: ledger_{last}",
    )
    strays = found["audit_log default partition"]
    assert (strays["state"], "holds 1 rows" in strays["detail"]) == ("warn", True)
    assert "ledger default partition" not in found


@contextlib.contextmanager
def pooler(database):
    """Stand before PostgreSQL as a transaction pooler does; lend the address.

    It makes up the process id for cancelling, and what is notified reaches nobody.
    """
    parts = urlsplit(database)
    folder = parse_qs(parts.query).get("host", [""])[0]

    def connect():
        if not folder:
            return socket.create_connection((parts.hostname, parts.port or 5432))
        there = socket.socket(socket.AF_UNIX)
        there.connect(f"{folder}/.s.PGSQL.5432")
        return there

    def back(far):
        stream = far.makefile("rb")
        while head := stream.read(5):
            body = stream.read(int.from_bytes(head[1:]) - 4)
            if head[:1] == b"K":
                body = b"\x00\x00\x00\x01" + body[4:]
            if head[:1] != b"A":
                yield head + body

    user = parts.netloc.rpartition("@")[0]
    with relay(connect, back) as port:
        place = f"{user}@127.0.0.1:{port}" if user else f"127.0.0.1:{port}"
        yield urlunsplit((parts.scheme, place, parts.path, "", ""))


def test_a_transaction_pooler_is_found(cli, database, monkeypatch):
    """In the way of notifications it is a failure; with a way past it all is well."""
    with pooler(database) as through:
        monkeypatch.setenv("DATABASE_URL", through)
        found = found_by(cli)
        assert (found["postgres pooler"]["state"], found["postgres"]["state"]) == ("warn", "ok")
        assert found["notifications"]["state"] == "fail"
        assert all(LISTEN in found[each]["advice"] for each in ("postgres pooler", "notifications"))
        monkeypatch.setenv(LISTEN, database)
        found = found_by(cli)
        assert (found["postgres pooler"]["state"], found["notifications"]["state"]) == ("ok", "ok")
        monkeypatch.setenv(LISTEN, through)
        state, detail = state_of(cli, "postgres pooler")
        assert (state, detail) == ("warn", f"{LISTEN} leads through one")


@contextlib.contextmanager
def redis_of_its_own(folder, *options):
    """Run a Redis with these options on loopback; lend the address."""
    port = free_port()
    words = [find_server(), *options, "--port", str(port), "--bind", "127.0.0.1", "--save", ""]
    with subprocess.Popen([*words, "--dir", str(folder)], stdout=subprocess.DEVNULL) as process:
        try:
            client = redis.Redis(port=port)
            deadline = time.monotonic() + 60
            while True:
                with contextlib.suppress(redis.ConnectionError):
                    client.ping()
                    break
                assert time.monotonic() < deadline
            client.close()
            yield f"redis://127.0.0.1:{port}/0"
        finally:
            process.kill()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--replicaof", "127.0.0.1", "1"], "read-only replica"),
        (["--cluster-enabled", "yes"], "cluster"),
        (["sentinel.conf", "--sentinel"], "sentinel"),
    ],
)
def test_a_redis_of_another_kind_is_refused_in_words(cli, tmp_path, monkeypatch, options, words):
    """A replica takes no counters; clusters and sentinels are not spoken to."""
    (tmp_path / "sentinel.conf").touch()
    options = [str(tmp_path / each) if each == "sentinel.conf" else each for each in options]
    with redis_of_its_own(tmp_path, *options) as url:
        monkeypatch.setenv("REDIS_URL", url)
        state, detail = state_of(cli, "redis")
    assert (state, words in detail) == ("fail", True)


@pytest.mark.parametrize(
    ("fields", "state", "words"),
    [
        ({"redis_version": "6.0.20"}, "fail", "6.0.20 is too old"),
        ({"redis_version": "6.2.0"}, "ok", "6.2.0 at"),
        ({"redis_version": "7.2.4", "valkey_version": "8.1.0"}, "ok", "Valkey 8.1.0"),
        ({"redis_version": "6.2.0", "loading": "1"}, "fail", "loading"),
    ],
)
def test_the_version_of_redis_is_judged(fields, state, words):
    """Redis from 6.2 on, or any Valkey; by the fields of INFO."""
    finding = _server({"role": "master"} | fields, "redis://127.0.0.1:6379/0")
    assert (finding.state, words in finding.detail) == (state, True)


def test_a_redis_that_is_not_there_is_no_matter_of_the_network(cli, monkeypatch):
    """A refused connection is told at once, and not tried for again; what to do is to start it."""
    monkeypatch.setattr(redis_line, "REDIS_LIMIT", 600.0)
    monkeypatch.setenv("REDIS_URL", "redis://:hidden@127.0.0.1:1/0")
    found = found_by(cli)["redis"]
    assert (found["state"], found["detail"]) == ("fail", "Redis cannot be used at 127.0.0.1:1/0")
    assert "Start Redis" in found["advice"]


def test_a_redis_that_is_badly_set_is_told(cli, redis_url):
    """Eviction, no append-only file, and memory that is nearly full."""
    told = {"maxmemory-policy": "allkeys-lru", "appendonly": "no", "maxmemory": "500mb"}
    with redis.Redis.from_url(redis_url) as memory:
        before = {name: memory.config_get(name)[name] for name in told}
        try:
            for name, value in told.items():
                memory.config_set(name, value)
            found = found_by(cli)
            assert (found["redis memory"]["state"], found["redis persistence"]["state"]) == (
                "fail",
                "warn",
            )
            memory.config_set("maxmemory", 0)
            assert state_of(cli, "redis memory")[0] == "warn"
            memory.config_set("maxmemory-policy", "noeviction")
            memory.config_set("maxmemory", int(memory.info("memory")["used_memory"] * 1.1))
            state, detail = state_of(cli, "redis memory")
            assert (state, "of maxmemory" in detail) == ("warn", True)
        finally:
            memory.config_set("maxmemory", 0)
            for name, value in before.items():
                memory.config_set(name, value)


def test_a_redis_far_away_is_told(cli, redis_url, monkeypatch):
    """Behind a line that takes 15 ms for each answer."""

    def back(far):
        while piece := far.recv(65_536):
            time.sleep(0.015)
            yield piece

    with relay(to_redis(redis_url), back) as port:
        monkeypatch.setenv("REDIS_URL", f"redis://127.0.0.1:{port}/0")
        found = found_by(cli)
    assert (found["redis latency"]["state"], found["redis"]["state"]) == ("warn", "ok")
