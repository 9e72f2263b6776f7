"""Children come back when they die, and go when they should."""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import socket
from urllib.parse import urlsplit

import pytest

from deploy.staging.programs import free_port
from tests.processes.conftest import SECONDS, wait_gone


def test_a_dead_worker_is_replaced_and_no_connection_is_refused_meanwhile(quickstart):
    """The supervisor holds the socket, so callers wait in its queue for the next worker."""
    running = quickstart()
    before = running.children()["worker"][0]
    os.kill(before, signal.SIGKILL)
    wait_gone(before)
    assert running.get() != str(before)
    assert running.hear("restarting", "worker")["reason"] == "ended with exit code -9"
    assert len(running.children()["worker"]) == 1


def test_two_workers_share_one_socket_and_one_dies_alone(quickstart):
    """The other worker's process goes on."""
    running = quickstart("--workers", "2")
    first, second = running.children()["worker"]
    os.kill(first, signal.SIGKILL)
    running.hear("restarted", "worker")
    workers = running.children()["worker"]
    assert second in workers
    assert len(workers) == 2
    assert first not in workers


def test_a_worker_whose_lifespan_breaks_leaves_and_is_replaced(quickstart):
    """Behind the lifespan are the stores and revocations: without it nothing is served."""
    running = quickstart()
    before = running.get("/break")
    assert running.hear("restarting", "worker")["reason"] == "ended with exit code 4"
    assert running.get() != before


@pytest.mark.parametrize(("role", "name"), [("redis", "Redis"), ("postgres", "PostgreSQL")])
def test_a_killed_store_comes_back_on_the_same_socket(quickstart, role, name):
    """kill -9 of an embedded store is repaired without a restart of anything else."""
    running = quickstart()
    before = running.children()
    for pid in before[role]:
        os.kill(pid, signal.SIGKILL)
    running.hear("restarted", name)
    after = running.children()
    assert after[role] != before[role]
    assert after["worker"] == before["worker"]
    assert running.stop()[0] == 0


def test_a_killed_simulator_comes_back_on_the_same_port(quickstart):
    """Its socket is the supervisor's too."""
    running = quickstart()
    os.kill(running.children()["simulator"][0], signal.SIGKILL)
    running.hear("restarted", "simulated Ollama")
    parts = urlsplit(running.told["ollama_url"])
    with socket.create_connection((parts.hostname, parts.port), timeout=10) as stream:
        stream.sendall(b"GET /api/version HTTP/1.1\r\nhost: x\r\n\r\n")
        assert stream.recv(100).startswith(b"HTTP/1.1 200")


@pytest.mark.parametrize("everything", [False, True])
def test_a_killed_supervisor_leaves_no_process_and_blocks_no_start(quickstart, everything):
    """kill -9 of the supervisor, or of all at once, then an ordinary start at once."""
    running = quickstart("--workers", "2", "--bind", f"127.0.0.1:{free_port()}")
    pids = running.pids()
    running.popen.kill()
    if everything:
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
    running.popen.wait(SECONDS)
    again = quickstart("--bind", urlsplit(running.told["base_url"]).netloc)
    assert again.told["api_key"] is None
    for pid in pids:
        wait_gone(pid)
    assert again.get()
    assert again.stop()[0] == 0


def test_a_drain_refuses_new_connections_and_lets_the_live_call_end(quickstart):
    """The stream gets its end, a new connection is refused at once, exit code 0."""
    running = quickstart(TINY_LIFESPAN="stubborn")
    parts = urlsplit(running.told["base_url"])
    with running.stream() as answer:
        running.popen.terminate()
        assert answer.read(9) == b"draining "
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection((parts.hostname, parts.port), timeout=10)
        running.popen.terminate()
        assert answer.read().startswith(b"hastened ")
    assert running.finish()[0] == 0


def test_a_call_that_outlives_the_drain_time_is_cut(quickstart):
    """The worker ends drain time plus grace after the signal, not with the call."""
    running = quickstart(TINY_LIFESPAN="stubborn", TRIO_GATEWAY_DRAIN_TIMEOUT="0")
    worker = running.children()["worker"][0]
    with running.stream():
        assert running.stop()[0] == 0
    wait_gone(worker)


@pytest.mark.parametrize(
    ("mode", "words"), [("fail", "the database cannot be reached"), ("raise", "OSError")]
)
def test_a_worker_that_cannot_start_stops_the_start_with_its_reason(launch, tmp_path, mode, words):
    """One sentence from the worker, one from the supervisor, exit code 1, nothing left."""
    folder = tmp_path / "new"
    failed = launch("quickstart", "--simulate", "--data-dir", folder, TINY_LIFESPAN=mode)
    code, out, err = failed.finish()
    assert (code, out) == (1, "")
    assert f"trio-gateway: a worker cannot serve: {words}\n" in err
    assert "trio-gateway: a worker ended at its start with exit code 3\n" in err
    assert "Traceback" not in err


def test_a_signal_during_the_start_ends_it_in_order(launch, tmp_path):
    """SIGTERM before anything is ready: exit code 0 and no process left."""
    words = ["quickstart", "--simulate", "--data-dir", tmp_path / "new"]
    starting = launch(*words, TINY_LIFESPAN="endless")
    while (line := starting.err.line()) != "the start goes on\n":
        assert line
    pids = starting.pids()
    code, out, _ = starting.stop()
    assert (code, out) == (0, "")
    for pid in pids:
        wait_gone(pid)


def test_a_worker_that_cannot_be_started_for_now_is_tried_again(quickstart):
    """No descriptor, no memory or no process to be had: the rest goes on, and nothing leaks."""
    running = quickstart()
    pid, before = running.popen.pid, running.children()
    soft, hard = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    used = running.descriptors()
    free = [number for number in range(3, len(used) + 5) if number not in used]
    # room for one of the two pipes that a worker wants
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (free[1] + 1, hard))
    os.kill(before["worker"][0], signal.SIGKILL)
    reasons = [running.hear("restarting", "worker")["reason"] for _ in range(4)]
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (soft, hard))
    assert reasons[0] == "ended with exit code -9"
    assert all("Too many open files" in reason for reason in reasons[1:])
    running.hear("restarted", "worker")
    assert running.get() == str(running.children()["worker"][0])
    assert running.children()["postgres"] == before["postgres"]
    assert len(running.descriptors()) <= len(used)
    assert running.stop()[0] == 0
