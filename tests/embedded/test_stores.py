"""The embedded stores: private, durable, and never in the way of the next start."""

from __future__ import annotations

import asyncio
import os
import resource
import select
import shutil
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

import asyncpg
import pytest
import redis
import trio
import trio.testing

from trio_gateway.datadir import DataDir, DataDirInUse
from trio_gateway.embedded import postgres, stores
from trio_gateway.embedded.child import LAUNCHER, Child
from trio_gateway.embedded.redis import find_server
from trio_gateway.embedded.store import StoreFailed

HOLD = "import signal, sys; print('on', flush=True); signal.pause()"
PARENT = f"""
import signal, sys
from trio_gateway.embedded.child import Child
print(Child([sys.executable, "-c", {HOLD!r}]).pid, flush=True)
signal.pause()
"""


def query(url, text):
    async def go():
        connection = await asyncpg.connect(url, timeout=60)
        try:
            return await connection.fetchval(text)
        finally:
            await connection.close()

    return asyncio.run(go())


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "stores"


def client(running):
    return redis.Redis.from_url(running.redis_url, socket_timeout=60)


def test_both_stores_keep_their_contents_over_an_ordinary_restart(folder):
    """What was written before a stop is there after the next start, at the same addresses."""
    with stores.start(folder) as first:
        query(first.database_url, "create table t as select 7 as n")
        with client(first) as connection:
            connection.set("k", "v")
    with stores.start(folder) as second:
        assert tuple(second) == tuple(first)
        assert query(second.database_url, "select n from t") == 7
        with client(second) as connection:
            assert connection.get("k") == b"v"
    log = (folder / "postgres.log").read_text()
    assert "not properly shut down" not in log


def test_each_store_survives_its_own_kill(folder):
    """After kill -9 and a start, committed rows and appended writes are there."""
    with stores.start(folder) as running:
        query(running.database_url, "create table t as select 7 as n")
        running.postgres.kill()
        assert not running.postgres.running
        running.postgres.start()
        assert query(running.database_url, "select n from t") == 7
        with client(running) as connection:
            connection.set("k", "v")
        running.redis.stop()
        running.redis.start()
        with client(running) as connection:
            assert connection.get("k") == b"v"


def test_a_wiped_redis_starts_empty_and_under_another_run_id(folder):
    """`wipe` plays the loss of all counters; a new run id tells of every restart."""
    with stores.start(folder) as running:
        with client(running) as connection:
            connection.set("k", "v")
            before = connection.info("server")["run_id"]
        running.redis.wipe()
        running.redis.start()
        with client(running) as connection:
            assert connection.get("k") is None
            assert connection.info("server")["run_id"] != before


def test_neither_store_listens_on_the_network(folder):
    """Unix sockets only, in folders closed to others."""
    with stores.start(folder) as running:
        with client(running) as connection:
            assert connection.config_get("port")["port"] == "0"
        assert query(running.database_url, "show listen_addresses") == ""
        assert running.redis.socket_path.stat().st_mode & 0o077 == 0
        assert running.postgres.socket_folder.stat().st_mode & 0o077 == 0


def test_errors_leave_no_values_in_the_log_of_postgres(folder):
    """Neither a failed statement nor the detail of a violated constraint is written down."""
    with stores.start(folder) as running:
        query(running.database_url, "create table t (n text primary key)")
        query(running.database_url, "insert into t values ('canary')")
        with pytest.raises(asyncpg.UniqueViolationError):
            query(running.database_url, "insert into t values ('canary')")
    log = (folder / "postgres.log").read_text()
    assert "duplicate key" in log
    assert "canary" not in log


def test_one_data_directory_has_one_user_at_a_time(folder):
    """The second one is refused, the first goes on."""
    with stores.start(folder) as running:
        with pytest.raises(DataDirInUse), stores.start(folder):
            pass
        assert query(running.database_url, "select 1") == 1


def test_stores_left_over_from_a_crash_are_taken_down_before_the_next_start(folder):
    """Orphans that still run hold the store's lock; they are stopped, not joined."""
    with DataDir(folder) as opened:
        orphans = stores.of(opened)
        orphans.redis.start()
        orphans.postgres.start()
    # nobody reaped or stopped them: the next start meets two living servers
    with stores.start(folder) as running:
        for orphan in (orphans.redis, orphans.postgres):
            assert orphan.child is not None
            assert orphan.child.join(60)
        assert query(running.database_url, "select 1") == 1


def test_a_stale_lock_file_naming_a_living_process_does_not_block_postgres(folder):
    """After a reboot the process id in postmaster.pid may be anybody's."""
    with stores.start(folder) as running:
        lock_file = running.postgres.folder / "postmaster.pid"
        lines = lock_file.read_text().splitlines()
        running.postgres.kill()
        lock_file.write_text("\n".join([str(os.getpid()), *lines[1:]]) + "\n")
        running.postgres.start()
        assert query(running.database_url, "select 1") == 1


def test_an_interrupted_first_start_is_begun_anew(folder):
    """A half-made data folder never gets the final name."""
    with DataDir(folder) as opened:
        unfinished = stores.of(opened).postgres.folder.with_suffix(".new")
        unfinished.mkdir()
        (unfinished / "PG_VERSION").write_text("half")
    with stores.start(folder) as running:
        assert query(running.database_url, "select 1") == 1


def test_a_store_that_cannot_start_says_why_in_one_sentence(folder):
    """The reason comes from the server's own log."""
    with stores.start(folder) as running:
        running.postgres.stop()
        (running.postgres.folder / "PG_VERSION").write_text("9.6\n")
        with pytest.raises(StoreFailed, match=r"PostgreSQL did not start: .*see .*postgres\.log"):
            running.postgres.start()


def test_without_a_redis_anywhere_the_message_names_what_to_install(monkeypatch):
    """On Python 3.13 there is no wheel: then PATH, then advice."""
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.setenv("PATH", "/nonexistent")
    with pytest.raises(StoreFailed, match="install redis-server or valkey-server"):
        find_server()
    with pytest.raises(StoreFailed, match="set DATABASE_URL"):
        postgres.find_programs()


def test_without_the_wheel_a_valkey_server_on_path_is_used(monkeypatch, folder):
    """Any server that speaks the protocol and takes the same settings will do."""
    place = folder.with_name("bin")
    place.mkdir()
    shutil.copy(find_server(), place / "valkey-server")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.setenv("PATH", str(place))
    assert find_server() == str(place / "valkey-server")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root has folders closed to `nobody`")
def test_as_root_below_folders_closed_to_everybody_else(tmp_path, monkeypatch):
    """The server and its programs may lie below 0700 folders of root, such as /root."""
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o700)
    programs = postgres.find_programs()
    wheel = programs.parents[1]
    for folder in (wheel, *wheel.parent.glob(f"{wheel.name}.libs")):
        shutil.copytree(folder, closed / folder.name, symlinks=True)
    moved = closed / wheel.name / programs.relative_to(wheel)
    monkeypatch.setattr(postgres, "find_programs", lambda: moved)
    with stores.start(closed / "stores") as running:
        assert query(running.database_url, "select 1") == 1
        assert running.postgres.child is not None
        lines = Path(f"/proc/{running.postgres.child.pid}/status").read_text().splitlines()
    fields = dict(line.split(":\t", 1) for line in lines if ":\t" in line)
    assert fields["Uid"].split("\t")[1] != "0"
    # reading what is closed is all that is left of root
    assert int(fields["CapEff"], 16) in {1 << 1, 1 << 2}


def test_a_child_ends_with_the_process_that_started_it():
    """The parent is killed without a chance to clean up."""
    parent = subprocess.Popen(
        [
            sys.executable,
            "-c",
            PARENT,
        ],
        stdout=subprocess.PIPE,
    )
    assert parent.stdout is not None
    with parent.stdout:
        lines = {parent.stdout.readline(), parent.stdout.readline()}
    lines.remove(b"on\n")
    child = os.pidfd_open(int(lines.pop()))
    parent.kill()
    parent.wait(60)
    ready, _, _ = select.select([child], [], [], 60)
    os.close(child)
    assert ready


def test_a_child_whose_parent_is_gone_already_does_not_begin():
    """Between fork and the request for a signal the parent may have died."""
    launched = subprocess.run(
        [sys.executable, "-I", "-S", LAUNCHER, "15", "1", "-", "/bin/echo", "begun"],
        capture_output=True,
        timeout=60,
        check=False,
    )
    assert (launched.returncode, launched.stdout) == (75, b"")


def test_children_are_refused_outside_the_main_thread():
    """There they would end with the thread, in the middle of their work."""
    caught = []

    def attempt():
        try:
            Child(["/bin/true"])
        except RuntimeError as error:
            caught.append(error)

    thread = threading.Thread(target=attempt)
    thread.start()
    thread.join(60)
    assert len(caught) == 1


async def test_a_child_can_be_awaited_from_trio():
    """`wait` returns the exit code, negative for a signal."""
    child = Child([sys.executable, "-c", "raise SystemExit(5)"])
    assert await child.wait() == 5
    other = Child(["/bin/sleep", "60"])
    other.send(signal.SIGTERM)
    assert await other.wait() == -signal.SIGTERM


async def test_a_child_is_awaited_without_a_descriptor_too():
    """Where none is free it is looked at now and then, and found out all the same."""
    child = Child(["/bin/sleep", "600"])
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
    codes = []

    async def wait():
        codes.append(await child.wait())

    try:
        with trio.fail_after(60):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(wait)
                await trio.testing.wait_all_tasks_blocked()
                child.send(signal.SIGTERM)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        child.send(signal.SIGKILL)
    assert codes == [-signal.SIGTERM]


def test_the_sockets_of_a_long_path_avoid_a_squatted_name(tmp_path):
    """Somebody else's folder under the predictable name is never used."""
    folder = tmp_path / ("x" * 100)
    with DataDir(folder) as opened:
        predicted = opened.sockets()
    predicted.rmdir()
    predicted.symlink_to(tmp_path)
    try:
        with DataDir(folder) as opened:
            chosen = opened.sockets()
            assert chosen != predicted
            assert chosen == opened.sockets()
            with socket.socket(socket.AF_UNIX) as probe:
                probe.bind(str(chosen / "redis.sock"))
        shutil.rmtree(chosen)
    finally:
        predicted.unlink()
