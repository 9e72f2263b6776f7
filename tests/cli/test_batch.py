"""`trio-gateway batch ...` on a real installation; the rows are moved on by hand."""

import asyncio
import json
import os
import pty
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from trio_gateway.cli.batch_watch import Pace
from trio_gateway.clients.postgres import run_once

PROGRAM = Path(sys.executable).parent / "trio-gateway"
TIMEOUT = 90
INSERT = """
INSERT INTO gateway.batches (id, tenant_id, key_id, endpoint, input_file_id, completion_window,
    fingerprint, expires_at, status, total)
SELECT $1, k.tenant_id, k.id, '/v1/chat/completions', 'file-x', '24h', '', now() + interval '1 day',
    $2, $3
FROM gateway.api_keys k JOIN gateway.tenants t ON t.id = k.tenant_id WHERE t.name = $4
"""
ERRORS = [
    {"code": "invalid_json_line", "line": 2, "message": "This line is not JSON.", "param": None},
    {"code": "empty_file", "line": None, "message": "There are no requests.", "param": None},
    {"code": "invalid_url", "line": 7, "message": "The URL is another.", "param": "url"},
    {"code": "invalid_url", "line": 8, "message": "The URL is another.", "param": "url"},
]


@pytest.fixture
def sql(cli, database):
    """Run a statement, beside whatever command runs."""
    cli("tenant", "create", "acme", "--all-models")
    cli("key", "create", "--tenant", "acme", "--name", "laptop")

    def run(query, *args):
        asyncio.run(run_once(database, query, *args))

    return run


@pytest.fixture
def made(sql):
    """Make a batch of acme's as it stands at some time; returns its id."""

    def make(number=1, status="in_progress", total=20, tenant="acme"):
        batch_id = f"batch_{number:024x}"
        sql(INSERT, batch_id, status, total, tenant)
        return batch_id

    return make


def started(*words, **streams):
    """Start the program beside this process."""
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | streams
    return subprocess.Popen([PROGRAM, *words], env={**os.environ, "COLUMNS": "120"}, **streams)


def test_batches_are_listed_by_tenant_and_status(cli, made):
    """Latest first, with the tenant's name; a list that was cut says so."""
    assert cli("batch", "list", "--json").json == []
    assert "There is no batch" in cli("batch", "list").out
    cli("tenant", "create", "other")
    cli("key", "create", "--tenant", "other")
    first, second = made(1), made(2, "completed", tenant="other")
    assert [row["id"] for row in cli("batch", "list", "--json").json] == [second, first]
    (row,) = cli("batch", "list", "--tenant", "acme", "--json").json
    assert (row["id"], row["tenant"], row["status"], row["total"]) == (
        first,
        "acme",
        "in_progress",
        20,
    )
    (row,) = cli("batch", "list", "--status", "completed", "--json").json
    assert row["id"] == second
    assert cli("batch", "list", "--status", "expired").out == "No batch is so.\n"
    answer = cli("batch", "list", "--limit", "1")
    assert second in answer.out
    assert "--limit shows more" in answer.err
    cli("batch", "list", "--tenant", "ghost").refused("there is no tenant 'ghost'")
    cli("batch", "list", "--status", "done").refused("--status", "done", code=2)


def test_a_batch_is_shown_with_what_was_wrong(cli, made, sql):
    """JSON has every field; people get each error as a sentence, and nothing that is empty."""
    batch_id = made(status="failed", total=0)
    sql("UPDATE gateway.batches SET errors = $1::jsonb, failed_at = now()", json.dumps(ERRORS))
    row = cli("batch", "show", batch_id, "--json").json
    assert (row["errors"], row["output_file_id"]) == (ERRORS, None)
    shown = cli("batch", "show", batch_id).out
    assert "line 2: This line is not JSON. (invalid_json_line)" in shown
    assert "output_file_id" not in shown
    cli("batch", "show", "batch_none").refused("Batch 'batch_none' not found.")
    for verb in ("show", "cancel", "watch"):
        cli("batch", verb, "batch\udcff").refused("not found")


def test_a_batch_is_cancelled_once_and_the_act_is_recorded(cli, made):
    """Again is no error, and no second act; what has ended otherwise is refused."""
    batch_id = made()
    assert cli("batch", "cancel", batch_id, "--json").json["status"] == "cancelling"
    assert cli("batch", "cancel", batch_id).out == f"Batch {batch_id} is cancelling.\n"
    acts = cli("audit", "--acts", "--json").json
    assert [act["subject"] for act in acts if act["action"] == "batch.cancel"] == [batch_id]
    done = made(2, "completed")
    cli("batch", "cancel", done).refused(f"Cannot cancel batch '{done}' with status 'completed'.")
    cli("batch", "cancel", "batch_none").refused("not found")


def test_watching_ends_as_the_batch_ends(cli, made, sql):
    """0 for completed; 1 for the rest, and a line that names the first errors."""
    batch_id = made(status="completed")
    sql("UPDATE gateway.batches SET completed = 18, failed = 2")
    assert cli("batch", "watch", batch_id).out == f"{batch_id} completed 20/20, 2 failed\n"
    (line,) = cli("batch", "watch", batch_id, "--json").out.splitlines()
    assert json.loads(line)["completed"] == 18
    for status in ("expired", "cancelled"):
        sql("UPDATE gateway.batches SET status = $1, completed = 5", status)
        answer = cli("batch", "watch", batch_id)
        assert answer.code == 1
        assert f"{batch_id} is {status}: 5 of 20 lines were answered" in answer.err
    failed = made(2, "failed", 0)
    sql("UPDATE gateway.batches SET errors = $1::jsonb WHERE id = $2", json.dumps(ERRORS), failed)
    answer = cli("batch", "watch", failed)
    assert (answer.code, answer.err.count("\n")) == (1, 1)
    for words in ("line 2: This line", "There are no requests.", "line 7: ", "and 1 more"):
        assert words in answer.err
    cli("batch", "watch", "batch_none").refused("not found")


def test_a_change_is_one_json_object(made, sql):
    """Each as soon as it is seen, and none where nothing changed."""
    batch_id = made()
    with started("batch", "watch", batch_id, "--json", text=True) as running:
        assert json.loads(running.stdout.readline())["completed"] == 0
        sql("UPDATE gateway.batches SET completed = 7, failed = 3")
        assert json.loads(running.stdout.readline())["completed"] == 7
        sql("UPDATE gateway.batches SET paused = 'insufficient_quota'")
        assert json.loads(running.stdout.readline())["paused"] == "insufficient_quota"
        sql("UPDATE gateway.batches SET status = 'completed', paused = NULL, completed = 17")
        assert json.loads(running.stdout.readline())["status"] == "completed"
        assert running.stdout.read() == ""
        assert running.wait(TIMEOUT) == 0


def test_a_terminal_gets_a_bar(made, sql):
    """It shows counts, failures, the pace and why the batch waits."""
    batch_id = made(status="validating", total=0)
    ours, theirs = pty.openpty()
    seen = ""

    def until(*words):
        nonlocal seen
        while not all(word in seen for word in words):
            seen += os.read(ours, 65536).decode()

    with started("batch", "watch", batch_id, stdout=theirs) as running:
        os.close(theirs)
        until("validating")
        sql("UPDATE gateway.batches SET status = 'in_progress', total = 20")
        until("in_progress", "0/20")
        sql("UPDATE gateway.batches SET completed = 6, failed = 4")
        until("10/20", "4 failed", "lines/s", "left")
        sql("UPDATE gateway.batches SET paused = 'insufficient_quota'")
        until("paused: insufficient_quota")
        sql("UPDATE gateway.batches SET status = 'completed', paused = NULL, completed = 16")
        until("completed", "20/20")
        assert running.wait(TIMEOUT) == 0
        assert running.stderr.read() == b""
    os.close(ours)


@pytest.mark.parametrize("as_json", [(), ("--json",)])
def test_an_interrupt_leaves_the_batch_running(cli, made, as_json):
    """It ends the watching alone, and the way back is named."""
    batch_id = made()
    with started("batch", "watch", batch_id, *as_json, text=True) as running:
        assert running.stdout.readline()
        running.send_signal(signal.SIGINT)
        said = running.stderr.read()
        assert running.wait(TIMEOUT) == 130
    assert f"the batch goes on; `trio-gateway batch watch {batch_id}`" in said
    assert said.count("\n") == 1
    assert cli("batch", "show", batch_id, "--json").json["status"] == "in_progress"


def test_the_pace_is_that_of_the_last_minute():
    """Nothing to tell from at first; a slow beginning is forgotten."""
    pace = Pace()
    assert pace.note(0, 0) is None
    assert pace.note(10, 0) is None
    assert pace.note(20, 20) == 1.0
    rates = [pace.note(20 + second, 20 + second * 10) for second in range(1, 200)]
    assert rates[-1] == 10.0
