"""What the doctor says of the workers and of the processes on this machine."""

import inspect
import resource
import socket

import pytest
import redis

from tests.cli.sickroom import LIFE, fake_worker, found_by, relay, report, state_of, to_redis
from trio_gateway import __version__, office
from trio_gateway.cli.check_workers import ADMIN_CONNECTIONS, WORKER_CONNECTIONS
from trio_gateway.clients.postgres import open_postgres
from trio_gateway.services.workers import PREFIX


def backend(host, *, healthy):
    return {"host": host, "healthy": healthy}


def test_workers_are_counted_by_machine(cli, redis_url):
    """None is a warning; those that report are told with their machines."""
    assert state_of(cli, "workers") == ("warn", "none reports")
    for host, slot in (("gpu1", "w0"), ("gpu1", "w1"), ("gpu2", "w0")):
        report(redis_url, host=host, slot=slot)
    assert state_of(cli, "workers") == ("ok", "3: 2 on gpu1, 1 on gpu2")


def test_an_upgrade_left_half_way_is_told(cli, redis_url):
    """Two releases side by side, or workers of another release than this command."""
    report(redis_url, version="0.0.1")
    found = state_of(cli, "worker versions")
    assert found == ("warn", f"the workers run 0.0.1, this command is of {__version__}")
    report(redis_url, slot="w1")
    found = state_of(cli, "worker versions")
    assert found == ("warn", f"0.0.1 and {__version__} run side by side")


def test_a_worker_that_is_not_ready_is_told(cli, redis_url):
    """A failure by what it lacks; one that leaves is a warning."""
    report(redis_url, pid=7, missing=["redis", "postgres"])
    report(redis_url, pid=8, missing=["shutting down"])
    found = found_by(cli)
    assert found["worker unready"]["state"] == "fail"
    assert found["worker unready"]["detail"].startswith("w0 (7) on gpu1 is not ready")
    assert "redis, postgres" in found["worker unready"]["detail"]
    assert (found["worker leaves"]["state"], "(8)" in found["worker leaves"]["detail"]) == (
        "warn",
        True,
    )


@pytest.mark.parametrize(("skew", "state"), [(5, "warn"), (-5, "warn"), (-60, "fail")])
def test_a_machine_whose_clock_is_off_is_told(cli, redis_url, skew, state):
    """By how long its report has been in Redis, whatever the report says."""
    report(redis_url)
    report(redis_url, host="gpu2", skew=skew)
    found = found_by(cli)["clock of gpu2"]
    way = "ahead of" if skew > 0 else "behind"
    assert (found["state"], way in found["detail"]) == (state, True)


def test_the_clock_of_a_machine_is_read_off_its_best_report(cli, redis_url):
    """One that came late to Redis says nothing of the clock, where another of its machine does."""
    report(redis_url, skew=-5)
    report(redis_url, slot="w1")
    assert state_of(cli, "worker clocks")[0] == "ok"


def test_a_report_that_comes_while_the_doctor_looks_changes_no_clock(cli, redis_url, monkeypatch):
    """Its age is that of the very report that was read."""
    report(redis_url, skew=-300)

    def back(far):
        while piece := far.recv(65_536):
            if b"reported_at" in piece:
                memory.pexpire(key, int(LIFE * 1000))  # as it is when a report was just written
            yield piece

    with redis.Redis.from_url(redis_url) as memory, relay(to_redis(redis_url), back) as port:
        (key,) = memory.keys(f"{PREFIX}*")
        memory.pexpire(key, int((LIFE - 300) * 1000))
        monkeypatch.setenv("REDIS_URL", f"redis://127.0.0.1:{port}/0")
        assert state_of(cli, "worker clocks")[0] == "ok"


def test_a_backend_that_workers_cannot_use_is_told(cli, redis_url):
    """However well it answers from here."""
    report(redis_url, backends=[backend("one:1", healthy=True), backend("two:2", healthy=False)])
    report(redis_url, slot="w1", backends=[backend("two:2", healthy=True)])
    found = state_of(cli, "worker backends")
    assert found == ("warn", "two:2 does not answer 1 of 2 workers")


def test_a_report_of_another_shape_is_no_crash(cli, redis_url):
    """A later release may report other things: the check says so, the others go on."""
    report(redis_url, missing=None, backends=None)
    found = found_by(cli)
    assert found["workers"]["state"] == "fail"
    assert found["redis"]["state"] == "ok"


def test_the_connections_counted_are_those_that_are_opened():
    """A worker: its pool and its listener. The admin listener: its pool."""
    pool = inspect.signature(open_postgres).parameters["size"].default
    assert (pool + 1, office.CONNECTIONS) == (WORKER_CONNECTIONS, ADMIN_CONNECTIONS)


@pytest.mark.parametrize(
    ("status", "fields", "state"),
    [(401, {"error": "invalid_api_key"}, "ok"), (200, {"version": "0.33.0"}, "fail")],
)
def test_the_public_listener_is_asked_without_a_key(cli, redis_url, status, fields, state):
    """Where a worker on this machine listens, no Ollama may answer."""
    with fake_worker(status, fields) as pid:
        report(redis_url, host=socket.gethostname(), pid=pid)
        found = state_of(cli, "public listener")
    assert (found[0], "http://127.0.0.1:" in found[1]) == (state, True)


def test_processes_of_others_are_left_alone(cli, redis_url):
    """A number that means another program here is neither asked nor judged."""
    with fake_worker(200, {"version": "0.33.0"}, name="something-else") as pid:
        report(redis_url, host=socket.gethostname(), pid=pid)
        found = found_by(cli)
    assert "public listener" not in found
    assert "started from here" in found["file limit"]["detail"]


def test_a_worker_that_may_open_few_files_is_told(cli, redis_url):
    """By the limit of the process that runs, not by that of the doctor's own."""
    with fake_worker(401, {}) as pid:
        report(redis_url, host=socket.gethostname(), pid=pid)
        assert state_of(cli, "file limit")[0] == "ok"
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (1000, 1000))
        state, detail = state_of(cli, "file limit")
        assert (state, "1,000 open files" in detail) == ("warn", True)
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (4, 4))
        state, detail = state_of(cli, "file limit")
        assert (state, "of 4 files open" in detail) == ("warn", True)


def test_without_processes_the_limit_here_counts(cli, monkeypatch):
    """What `serve` would have, if it were started from this shell; more slots want more."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (4095, hard))
    try:
        state, detail = state_of(cli, "file limit")
        assert (state, "4,096 are wanted" in detail) == ("warn", True)
        monkeypatch.setenv("TRIO_GATEWAY_QUEUE_LIMIT", "9000")
        assert "9,528 are wanted" in state_of(cli, "file limit")[1]
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
