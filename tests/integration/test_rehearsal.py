"""The scripts of deploy/ that rehearse a rolling restart, and a loss of everything: run small."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import trio

from deploy.staging import nginx
from tests.integration.fleet import Program, until

TOP = Path(__file__).parents[2]
LIMIT = 900.0  # seconds


async def script(name, *words):
    """Run a script as an operator does; return its exit code and its JSON."""
    command = [sys.executable, "-m", f"deploy.{name}", *words]
    with trio.fail_after(LIMIT):
        done = await trio.run_process(
            command, cwd=TOP, check=False, capture_stdout=True, capture_stderr=True
        )
    assert done.stdout, done.stderr.decode()
    return done.returncode, json.loads(done.stdout)


@pytest.mark.skipif(
    nginx.find() is None, reason="nginx is not on PATH: the rolling restart is NOT rehearsed"
)
async def test_a_rolling_restart_under_load_fails_no_call():
    """Two gateways behind nginx, one after the other: all calls whole, all rows there."""
    code, found = await script("rehearse", "--how", "rotation", "--callers", "8")
    assert code == 0, found
    assert found["failed"] == 0
    assert found["ledger_rows"] == found["calls"] > 30
    assert found["ledger_outcomes"] == {"completed": found["calls"]}
    assert found["ledger_verify"]["ok"]
    assert [(one["how"], one["gateway"]) for one in found["restarts"]] == [
        ("rotation", "gateway-1"),
        ("rotation", "gateway-2"),
    ]
    assert all(one["calls"] for one in found["restarts"])


async def test_a_lost_site_comes_back_from_a_dump_and_a_folder():
    """New PostgreSQL, empty Redis: counters equal the ledger, keys, files and batches are there."""
    code, found = await script("drill")
    assert code == 0, found
    assert all(found["checks"].values()), found
    assert len(found["checks"]) == 10
    assert found["before"]["ledger_rows"] == 12 + 6
    assert found["after"]["spent_tokens"] == found["after"]["charged_tokens"] > 0


@pytest.mark.parametrize("name", ["rehearse", "drill"])
def test_a_script_tells_what_it_does_and_refuses_what_it_does_not_know(name):
    """`--help` has its purpose; a wrong option is exit code 2 and one line that names it."""
    run = partial(subprocess.run, cwd=TOP, capture_output=True, text=True, check=False, timeout=180)
    shown = run([sys.executable, "-m", f"deploy.{name}", "--help"])
    assert (shown.returncode, "stdout" in shown.stdout) == (0, True)
    wrong = run([sys.executable, "-m", f"deploy.{name}", "--frobnicate"])
    assert (wrong.returncode, wrong.stdout) == (2, "")
    assert "--frobnicate" in wrong.stderr


async def test_a_script_that_is_killed_leaves_nothing_behind(tmp_path):
    """SIGKILL in the middle: stores, simulator and gateway all end with it."""
    words = [sys.executable, "-m", "deploy.drill", "--calls", "10000"]
    running = Program(words, tmp_path / "log", TMPDIR=str(tmp_path))
    try:
        await until(lambda: "making" in running.said, LIMIT)
        assert len(running.descendants()) >= 5
        running.send(signal.SIGKILL)
        await until(lambda: not running.left(), LIMIT)
    finally:
        running.destroy()
