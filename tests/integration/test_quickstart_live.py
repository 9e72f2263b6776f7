"""`trio-gateway quickstart` as a newcomer meets it: one command, one key, everything works."""

from __future__ import annotations

import json
import signal
import time
from functools import partial
from pathlib import Path

import httpx
import pytest
import trio

from tests.integration.calls import command
from tests.integration.fleet import STOP_LIMIT, Program, script, until
from trio_gateway.cli.main import main

FIELDS = [
    "base_url",
    "admin_url",
    "admin_token",
    "tenant",
    "api_key",
    "database_url",
    "redis_url",
    "ollama_url",
    "pid",
]
SAID = {"model": "llama3.2", "messages": [{"role": "user", "content": "hello"}]}


get = partial(httpx.get, timeout=60)


class Quickstart(Program):
    """A quickstart on a data directory; `told` is its ready line."""

    def __init__(self, folder: Path) -> None:
        words = [script("trio-gateway"), "quickstart", "--simulate", "--json"]
        words += ["--bind", "127.0.0.1:0", "--admin-bind", "127.0.0.1:0"]
        super().__init__([*words, "--data-dir", str(folder)], folder.with_suffix(".log"))
        try:
            self.told = self.line()
        except BaseException:
            self.destroy()
            raise
        self.descendants()

    def ask(self, key: str, **more: object) -> httpx.Response:
        """Chat as curl would."""
        return httpx.post(
            f"{self.told['base_url']}/v1/chat/completions",
            content=json.dumps(SAID | more),
            headers={"authorization": f"Bearer {key}"},
            timeout=60,
        )


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("quick") / "installation"


@pytest.fixture(scope="module")
def first(folder):
    running = Quickstart(folder)
    yield running
    running.destroy()


@pytest.fixture
def cli(folder, capsys, monkeypatch):
    """Run a command on the data directory, and give its JSON answer."""
    for name in ("DATABASE_URL", "REDIS_URL", "OLLAMA_BASE_URL"):
        monkeypatch.delenv(name, raising=False)

    def run(*words):
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main([*words, "--data-dir", str(folder), "--json"])
        printed = capsys.readouterr()
        assert not ended.value.code, printed.err
        return json.loads(printed.out)

    return run


def eventually(ask, enough=bool):
    """Ask until there is enough in the answer; return it."""
    deadline = time.monotonic() + STOP_LIMIT
    while not enough(found := ask()):
        assert time.monotonic() < deadline, found
    return found


def test_the_ready_line_tells_the_truth(first):
    """Every field in order, the pid is the supervisor's, the addresses answer."""
    assert list(first.told) == FIELDS
    assert first.told["pid"] == first.popen.pid
    assert first.told["tenant"] == "default"
    assert get(f"{first.told['base_url']}/readyz").text == "ready"
    assert get(f"{first.told['ollama_url']}/api/version").status_code == 200
    admin = f"{first.told['admin_url']}/admin/v1/status"
    assert get(admin).status_code == 401
    bearer = {"authorization": f"Bearer {first.told['admin_token']}"}
    assert get(admin, headers=bearer).json()["supervisor_pid"] == first.popen.pid


def test_the_printed_key_works_at_once(first):
    """Whole and streamed, and without it there is nothing to be had."""
    key = first.told["api_key"]
    assert first.ask(key).json()["choices"][0]["message"]["content"] == "Echo: hello"
    assert first.ask(key, stream=True).text.endswith("data: [DONE]\n\n")
    assert first.ask("nonsense").status_code == 401


def test_the_command_line_works_beside_it(first, cli):
    """Tenant, key, call, usage, books: each sees what the others did, by --data-dir alone."""
    tenant = cli("tenant", "create", "acme", "--all-models", "--budget", "100000")
    key = cli("key", "create", "--tenant", "acme", "--name", "laptop")
    assert first.ask(key["key"]).status_code == 200
    (row,) = eventually(lambda: cli("usage", "--tenant", "acme", "--by", "key"))
    assert (row["tenant"], row["requests"]) == ("acme", 1)
    assert {each["name"] for each in cli("tenant", "list")} == {"default", "acme"}
    assert tenant["id"].startswith("ten_")
    # a call is settled soon after its answer, and a revocation is heard of soon after its commit
    found = eventually(lambda: cli("ledger", "verify"), lambda found: not found["holds_open"])
    assert (found["ok"], found["differences"]) == (True, [])
    cli("key", "revoke", "laptop", "--tenant", "acme")
    eventually(lambda: first.ask(key["key"]), lambda answer: answer.status_code == 401)


async def test_the_doctor_finds_nothing_wrong(first, folder):
    """As a process of its own, by --data-dir."""
    code, found = await command("doctor", "--data-dir", str(folder))
    assert code == 0, found
    assert "fail" not in {each["state"] for each in found}


def test_a_second_start_keeps_everything_and_leaves_no_process(first, folder):
    """SIGTERM ends every child; the next start prints null for both secrets, which still work.

    The last test: it ends the shared installation.
    """

    async def stopped(running):
        running.descendants()
        assert len(running.seen) >= 5  # PostgreSQL, Redis, the simulated Ollama, worker, admin
        running.send(signal.SIGTERM)
        assert await running.ended() == 0, running.said
        await until(lambda: not running.left())

    trio.run(stopped, first)
    second = Quickstart(folder)
    try:
        assert (second.told["api_key"], second.told["admin_token"]) == (None, None)
        assert second.told["tenant"] == "default"
        assert second.told["pid"] == second.popen.pid
        assert second.ask(first.told["api_key"]).status_code == 200
        admin = f"{second.told['admin_url']}/admin/v1/status"
        bearer = {"authorization": f"Bearer {first.told['admin_token']}"}
        assert get(admin, headers=bearer).status_code == 200
        trio.run(stopped, second)
    finally:
        second.destroy()
