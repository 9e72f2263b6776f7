"""`trio-gateway usage`, `audit`, `ledger verify` and `doctor` on a real installation."""

import asyncio
import json
import socketserver
import threading
from http.server import BaseHTTPRequestHandler

import pytest
import redis
import trio

from trio_gateway.cli.finding import clock
from trio_gateway.clients.blobs import open_blobs
from trio_gateway.clients.bridge import open_bridge
from trio_gateway.clients.postgres import open_postgres, run_once
from trio_gateway.services.files.marker import check_marker

BOOKED = """
INSERT INTO gateway.ledger (request_id, tenant_id, key_id, model, outcome, prompt_tokens,
    completion_tokens, charged_tokens, started_at, endpoint, status_code, basis, held_tokens,
    duration_ms)
SELECT 'r', tenant_id, id, 'm:latest', 'completed', 3, 4, 7, now(), '/api/chat', 200, 'final', 7, 1
FROM gateway.api_keys
"""
REFUSED = """
INSERT INTO gateway.audit_log (code, status_code, method, path, request_id, tenant_id, count)
SELECT 'endpoint_not_allowed', 403, 'POST', '/api/pull', 'r', id, 9 FROM gateway.tenants
"""


def sql(database, query):
    asyncio.run(run_once(database, query))


def test_usage_is_summed_by_model_key_and_day(cli, database):
    """Names are accepted for tenant and key; nothing used is said in words."""
    assert cli("usage", "--json").json == []
    assert cli("usage").out == "Nothing was used.\n"
    cli("tenant", "create", "acme", "--all-models")
    cli("key", "create", "--tenant", "acme", "--name", "laptop")
    sql(database, BOOKED)
    (row,) = cli("usage", "--tenant", "acme", "--key", "laptop", "--since", "1h", "--json").json
    assert row == {
        "model": "m:latest",
        "requests": 1,
        "prompt_tokens": 3,
        "completion_tokens": 4,
        "charged_tokens": 7,
        "outcomes": {"completed": 1},
    }
    assert cli("usage", "--by", "key", "--json").json[0]["key"] == "laptop"
    assert "day" in cli("usage", "--by", "day", "--json").json[0]
    assert "completed 1" in cli("usage").out
    assert cli("usage", "--since", "2099-01-01", "--json").json == []
    cli("usage", "--key", "ghost").refused("there is no key 'ghost'")


def test_audit_lists_refusals_and_acts(cli, database):
    """What callers were refused, and what operators did, latest first."""
    assert cli("audit").out == "Nothing was refused.\n"
    assert cli("audit", "--acts").out == "Nobody changed anything.\n"
    cli("tenant", "create", "acme", "--all-models")
    sql(database, REFUSED)
    (row,) = cli("audit", "--tenant", "acme", "--since", "1d", "--json").json
    assert (row["code"], row["path"], row["count"]) == ("endpoint_not_allowed", "/api/pull", 9)
    assert "/api/pull" in cli("audit").out
    answer = cli("audit", "--acts", "--limit", "1", "--json")
    assert (answer.json[0]["actor"], answer.json[0]["action"]) == ("cli", "tenant.create")
    assert "--limit shows more" in answer.err
    assert cli("audit", "--since", "none", "--json").json[0]["count"] == 9


def test_the_books_are_compared(cli, database):
    """Books that agree are exit 0; a row without its sums is exit 1, and is shown."""
    cli("tenant", "create", "acme", "--all-models")
    cli("key", "create", "--tenant", "acme")
    found = cli("ledger", "verify", "--json").json
    assert (found["ok"], found["holds_open"], found["differences"]) == (True, 0, [])
    assert "the books agree" in cli("ledger", "verify").out
    sql(database, BOOKED)
    answer = cli("ledger", "verify", "--json")
    assert (answer.code, json.loads(answer.out)["ok"]) == (1, False)
    answer = cli("ledger", "verify")
    assert answer.code == 1
    assert "THE BOOKS DIFFER" in answer.out


def test_comparing_the_books_needs_redis(cli, monkeypatch):
    """Redis away or not named: one sentence."""
    monkeypatch.setenv("REDIS_URL", "redis://127.0.0.1:1/0")
    cli("ledger", "verify").refused("Redis cannot be used at 127.0.0.1:1/0")
    monkeypatch.setenv("REDIS_URL", "nonsense")
    cli("ledger", "verify").refused("REDIS_URL: must be a Redis address")
    monkeypatch.delenv("REDIS_URL")
    cli("ledger", "verify").refused("REDIS_URL is not")


class FakeOllama(BaseHTTPRequestHandler):
    """Tells a version, as Ollama does."""

    version = "0.32.0"

    def do_GET(self):
        body = json.dumps({"version": self.version}).encode()
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_args):
        pass


@pytest.fixture
def ollama(monkeypatch):
    with socketserver.TCPServer(("127.0.0.1", 0), FakeOllama) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        monkeypatch.setenv("OLLAMA_BASE_URL", f"http://127.0.0.1:{server.server_address[1]}")
        yield FakeOllama
        server.shutdown()
        thread.join()


def states(findings):
    return {finding["check"].split(" 127")[0]: finding["state"] for finding in findings}


def test_the_doctor_finds_a_good_installation_good(cli, ollama):
    """Every check is there, none fails, and a missing key is advice alone."""
    answer = cli("doctor", "--json")
    found = states(answer.json)
    assert set(found) == {
        "settings",
        "postgres",
        "postgres clock",
        "migrations",
        "keys",
        "notifications",
        "redis",
        "redis memory",
        "redis persistence",
        "redis clock",
        "blobs",
        "ollama",
        "disk",
    }
    assert "fail" not in found.values()
    assert found["keys"] == "warn"
    cli("tenant", "create", "acme")
    cli("key", "create", "--tenant", "acme")
    assert states(cli("doctor", "--json").json)["keys"] == "ok"
    assert "ok" in cli("doctor").out


def test_the_doctor_warns_of_an_old_ollama(cli, ollama, monkeypatch):
    """An old version is a warning; one built from source is taken on trust."""
    monkeypatch.setattr(ollama, "version", "0.17.0")
    assert states(cli("doctor", "--json").json)["ollama"] == "warn"
    monkeypatch.setattr(ollama, "version", "0.0.0")
    assert states(cli("doctor", "--json").json)["ollama"] == "ok"


def test_the_doctor_fails_for_what_stops_calls(cli, monkeypatch):
    """No Ollama, no Redis: advice for each, all in one run, and exit 1."""
    monkeypatch.setenv("OLLAMA_BASE_URL", "http://127.0.0.1:1")
    monkeypatch.setenv("REDIS_URL", "redis://127.0.0.1:1/0")
    answer = cli("doctor", "--json")
    assert answer.code == 1
    assert "2 of" in answer.err
    found = json.loads(answer.out)
    assert states(found)["redis"] == states(found)["ollama"] == "fail"
    assert states(found)["postgres"] == "ok"
    assert all(finding["advice"] for finding in found if finding["state"] != "ok")
    monkeypatch.setenv("TRIO_GATEWAY_DATABASE_LISTEN_URL", "postgresql://x@127.0.0.1:1/x")
    assert "notifications" in cli("doctor").out


def test_the_doctor_tells_what_a_store_is_badly_set_to(cli, ollama, redis_url, database):
    """Eviction, no append-only file, and a schema that lost a table."""
    told = {"maxmemory-policy": "allkeys-lru", "appendonly": "no", "maxmemory": "500mb"}
    with redis.Redis.from_url(redis_url) as memory:
        before = {name: memory.config_get(name)[name] for name in told}
        try:
            for name, value in told.items():
                memory.config_set(name, value)
            found = states(json.loads(cli("doctor", "--json").out))
            assert (found["redis memory"], found["redis persistence"]) == ("fail", "warn")
            memory.config_set("maxmemory", 0)
            assert states(cli("doctor", "--json").json)["redis memory"] == "warn"
        finally:
            for name, value in before.items():
                memory.config_set(name, value)
    sql(database, "DROP TABLE gateway.api_keys CASCADE")
    assert states(json.loads(cli("doctor", "--json").out))["keys"] == "fail"


def test_the_doctor_believes_a_running_gateway_about_ollama(cli, redis_url, monkeypatch):
    """Where the gateway sees models, an Ollama that is out of sight is no failure."""
    monkeypatch.setenv("OLLAMA_BASE_URL", "http://127.0.0.1:1")
    with redis.Redis.from_url(redis_url) as memory:
        memory.set("tg:catalog:x:turn", "1")
        assert states(json.loads(cli("doctor", "--json").out))["ollama"] == "fail"
        memory.set("tg:catalog:x", "[]")
        assert states(cli("doctor", "--json").json)["ollama"] == "warn"
        memory.delete("tg:catalog:x", "tg:catalog:x:turn")


@pytest.mark.parametrize(
    ("skew", "state"), [(0.2, "ok"), (-0.9, "ok"), (5, "warn"), (-29, "warn"), (31, "fail")]
)
def test_clocks_are_judged_by_how_far_they_are_apart(skew, state):
    """Ahead and behind alike."""
    assert clock("x", skew).state == state


def test_the_doctor_reports_bad_settings_first(cli, monkeypatch):
    """Nothing else is looked at while the settings are not understood."""
    monkeypatch.setenv("TRIO_GATEWAY_BOGUS", "1")
    answer = cli("doctor", "--json")
    assert answer.code == 1
    (finding,) = json.loads(answer.out)
    assert finding["check"] == "settings"
    assert "TRIO_GATEWAY_BOGUS" in finding["detail"]


def test_the_doctor_knows_whether_the_files_are_here(cli, database, tmp_path, monkeypatch):
    """Empty before the first start; then the store must be the marked one, and usable."""

    def blobs(url=None):
        if url is not None:
            monkeypatch.setenv("TRIO_GATEWAY_BLOB_URL", url)
        found = {finding["check"]: finding for finding in json.loads(cli("doctor", "--json").out)}
        return found["blobs"]

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


def test_the_doctor_fails_for_a_bucket_that_does_not_answer(cli, database, monkeypatch):
    """It says where to look, and shows none of the keys."""
    monkeypatch.setenv("TRIO_GATEWAY_BLOB_URL", "s3://bucket/prefix")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "hidden")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hidden")
    answer = cli("doctor", "--json")
    (found,) = [found for found in json.loads(answer.out) if found["check"] == "blobs"]
    assert (found["state"], "AWS_" in found["advice"]) == ("fail", True)
    assert "hidden" not in answer.out + answer.err
