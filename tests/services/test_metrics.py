"""What a process counts, and what becomes of it when the process ends."""

import contextlib
import os
import signal
import subprocess
import sys
from typing import Any

import pytest
import trio
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector

from tests.proxy import open_door
from tests.scrapes import names, parse, read, total
from trio_gateway.clients import postgres as client
from trio_gateway.clients.bridge import open_bridge
from trio_gateway.clients.postgres import open_postgres
from trio_gateway.core.domain import Basis, LedgerRow, Outcome
from trio_gateway.core.timeline import OPERATIONS, Timeline
from trio_gateway.dialects.table import INFERENCE
from trio_gateway.embedded import stores as embedded
from trio_gateway.migrate import upgrade
from trio_gateway.services.metrics import exposition
from trio_gateway.services.metrics.instruments import (
    BATCH_ENDS,
    CUTS,
    DIRECTIONS,
    LINE_ENDS,
    MOST_NAMES,
    Names,
)
from trio_gateway.services.metrics.metrics import Metrics, open_metrics
from trio_gateway.services.metrics.place import FOLDER, SLOT
from trio_gateway.services.metrics.state import BackendState, Sample, labels_of

BACKEND = "http://user:secret@gpu-one:11434"
CHAT = "/v1/chat/completions"


def row(**more):
    fields: dict[str, Any] = {
        "request_id": "req_1",
        "tenant_id": "ten_1",
        "key_id": "key_1",
        "endpoint": CHAT,
        "model": "llama3.2:latest",
        "status_code": 200,
        "outcome": Outcome.COMPLETED,
        "basis": Basis.FINAL,
        "prompt_tokens": 10,
        "completion_tokens": 21,
        "charged_tokens": 31,
        "held_tokens": 100,
        "backend": BACKEND,
        "started_us": 1,
        "ttft_ms": 1.0,
        "duration_ms": 2.0,
    }
    return LedgerRow(**fields | more)


def timeline(**more):
    """A call of two seconds: half of it in the queue, half a second until the first token."""
    made = Timeline(100.0, endpoint=CHAT, model="llama3.2:latest", row=row(**more))
    made.authenticated, made.received, made.parsed = 100.001, 100.101, 100.102
    made.reserved, made.granted, made.dispatched = 100.103, 101.103, 101.104
    made.first_byte, made.last_byte, made.closed, made.settled = 101.5, 102.0, 102.001, 102.05
    return made


def sample(**more):
    fields: dict[str, Any] = {
        "live": 3,
        "waiting": {"live": 2, "batch": 1},
        "backlog": 4,
        "waited": 0.5,
        "unsettled": 0,
        "audit": 0,
        "listening": True,
        "informed": True,
        "redis": True,
        "draining": False,
        "backends": {BACKEND: BackendState(in_flight=1, slots=8, up=True, models=5, age=1.5)},
    }
    return Sample(**fields | more)


@pytest.fixture
def place(tmp_path):
    return {FOLDER: str(tmp_path), SLOT: "w0"}


@pytest.fixture(autouse=True)
def folder_in_the_environment(tmp_path, monkeypatch):
    """The client library looks the folder up there by itself."""
    monkeypatch.setenv(FOLDER, str(tmp_path))


COUNT = """
import json, os, sys
from trio_gateway.services.metrics.metrics import open_metrics
from tests.services.test_metrics import sample
with open_metrics(environ=os.environ) as metrics:
    metrics.refused("invalid_api_key")
    metrics.sample(sample())
    print("counted", flush=True)
    sys.stdin.read(1)
"""


def child(tmp_path, slot) -> Any:
    """A process that counts one refusal and then stays, until it is killed."""
    environ = {FOLDER: str(tmp_path), SLOT: slot, "PYTHONPATH": ".", "PATH": ""}
    process = subprocess.Popen(
        [sys.executable, "-c", COUNT], env=environ, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"counted\n"
    return process


def kill(process):
    process.kill()
    process.communicate()


async def test_the_processes_of_an_installation_add_up(tmp_path, place):
    """Two workers and the scraping process: counters are summed, live gauges joined."""
    workers = [child(tmp_path, slot) for slot in ("w1", "w2")]
    try:
        with open_metrics(environ=place) as metrics:
            metrics.refused("invalid_api_key")
            series = await read(metrics)
    finally:
        for worker in workers:
            kill(worker)
    assert total(series, "trio_gateway_refusals_total", code="invalid_api_key") == 3
    assert total(series, "trio_gateway_workers") == 2
    assert total(series, "trio_gateway_live_calls") == 6
    assert total(series, "trio_gateway_listener_up") == 1


async def test_a_dead_worker_has_counted_and_does_nothing_any_more(tmp_path, place):
    """After kill -9 its counters stay, and its gauges are gone before anybody restarts it."""
    worker = child(tmp_path, "w1")
    with open_metrics(environ=place | {SLOT: "admin"}) as metrics:
        before = await read(metrics)
        kill(worker)
        after = await read(metrics)
    assert total(before, "trio_gateway_live_calls") == 3
    assert not [
        name for name, _ in after if name in {"trio_gateway_live_calls", "trio_gateway_workers"}
    ]
    assert total(after, "trio_gateway_refusals_total", code="invalid_api_key") == 1


async def test_a_restarted_worker_goes_on_counting_in_the_same_files(tmp_path, place):
    """Counters go on from where they were, the files stay as many, and the restart is counted."""
    files = []
    for _ in range(3):
        kill(child(tmp_path, "w1"))
        files.append(sorted(path.name for path in tmp_path.glob("*")))
    with open_metrics(environ=place | {SLOT: "admin"}) as metrics:
        series = await read(metrics)
    assert files[0] == files[1] == files[2]
    assert total(series, "trio_gateway_refusals_total", code="invalid_api_key") == 3
    assert total(series, "trio_gateway_process_restarts_total") == 2


async def test_a_restarted_worker_shows_nothing_of_its_predecessors_state(tmp_path, place):
    """Between its start and its first sample a worker has no live gauge at all."""
    kill(child(tmp_path, "w0"))
    with open_metrics(environ=place) as metrics:
        series = await read(metrics)
        metrics.sample(sample(live=1))
        assert total(await read(metrics), "trio_gateway_live_calls") == 1
    assert not [name for name, _ in series if name == "trio_gateway_live_calls"]


@pytest.mark.parametrize(
    "environ",
    [
        {},
        {FOLDER: "/nowhere"},
        {FOLDER: "/nowhere", SLOT: "w0"},
        {FOLDER: "/nowhere", SLOT: "../w0"},
    ],
)
async def test_without_a_usable_place_metrics_are_kept_in_memory(environ):
    """Stock hypercorn, a folder that is not there, a name that is none: counting goes on."""
    with open_metrics(environ=environ) as metrics:
        assert metrics.place is None
        metrics.refused("overloaded")
        assert total(await read(metrics), "trio_gateway_refusals_total", code="overloaded") == 1


async def test_a_slot_has_one_process(tmp_path, place):
    """Whoever comes second keeps its numbers in memory, so that nobody overwrites the other's."""
    holder = child(tmp_path, "w0")
    try:
        with open_metrics(environ=place) as metrics:
            assert metrics.place is None
    finally:
        kill(holder)


async def test_what_a_worker_writes_to_is_on_the_disk_beforehand(tmp_path, place):
    """A disk that fills up later must not end a worker in the middle of a count."""
    with open_metrics([BACKEND], place) as metrics:
        before = {path.name: path.stat().st_blocks for path in tmp_path.glob("*.db")}
        for number in range(MOST_NAMES):
            metrics.ended(timeline(model=f"a-model-of-this-length-{number}:latest"), 103.0)
        metrics.sample(sample())
        sizes = {path.name: path.stat().st_size for path in tmp_path.glob("*.db")}
        assert {path.name: path.stat().st_blocks for path in tmp_path.glob("*.db")} == before
    assert all(before[name] * 512 >= size for name, size in sizes.items())


NO_ROOM = """
import os, resource
from trio_gateway.services.metrics.metrics import open_metrics
resource.setrlimit(resource.RLIMIT_FSIZE, (128 * 1024, resource.RLIM_INFINITY))
with open_metrics(environ=os.environ) as metrics:
    metrics.refused("overloaded")
    print("in memory" if metrics.place is None else "in files")
"""


def test_without_room_for_the_files_metrics_are_kept_in_memory(tmp_path):
    """The worker starts, says so in its log, and counts."""
    environ = {FOLDER: str(tmp_path), SLOT: "w0"}
    done = subprocess.run(
        [sys.executable, "-c", NO_ROOM], env=environ, capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[-1] == "in memory"
    assert "metrics_in_memory" in done.stdout + done.stderr


async def test_a_call_is_observed_in_every_respect():
    """Each figure of one call, from stamps that are known."""
    metrics = Metrics([BACKEND])
    metrics.ended(timeline(), 103.0)
    series = await read(metrics)
    labels = {"gen_ai_operation_name": "chat", "gen_ai_request_model": "llama3.2:latest"}

    def seen(name, **more):
        return (
            total(series, f"{name}_count", **more),
            pytest.approx(total(series, f"{name}_sum", **more)),
        )

    assert seen("gen_ai_server_request_duration_seconds", **labels) == (1, 2.0)
    assert seen("gen_ai_server_time_to_first_token_seconds", **labels) == (1, 1.5)
    assert seen("gen_ai_server_time_per_output_token_seconds", **labels) == (1, 0.025)
    assert seen("gen_ai_client_token_usage", **labels, gen_ai_token_type="input") == (1, 10)
    assert seen("gen_ai_client_token_usage", **labels, gen_ai_token_type="output") == (1, 21)
    assert seen("trio_gateway_queue_wait_seconds") == (1, 1.0)
    assert seen("trio_gateway_overhead_seconds") == (1, 0.004)
    assert seen("trio_gateway_settle_lag_seconds") == (1, 0.05)
    of_calls = {"endpoint": CHAT, "outcome": "completed", "basis": "final"}
    assert total(series, "trio_gateway_calls_total", **of_calls) == 1
    assert total(series, "trio_gateway_charged_tokens_total", basis="final") == 31
    backend = {"backend": "gpu-one:11434", "outcome": "completed"}
    assert total(series, "trio_gateway_upstream_calls_total", **backend) == 1


async def test_a_settle_that_nobody_saw_counts_as_late_as_it_is():
    """The wait for PostgreSQL is given up after a while: the lag is then at least that."""
    metrics = Metrics([BACKEND])
    late = timeline()
    late.settled = None
    metrics.ended(late, 107.5)
    assert total(await read(metrics), "trio_gateway_settle_lag_seconds_sum") == pytest.approx(5.5)


async def test_a_call_that_was_never_dispatched_has_no_tokens():
    """Refused in the queue: counted as a call, its wait is seen, nothing of upstream."""
    metrics = Metrics([BACKEND])
    queued = timeline(outcome=Outcome.REFUSED, basis=Basis.NONE, backend=None, charged_tokens=0)
    queued.dispatched = queued.first_byte = None
    metrics.ended(queued, 103.0)
    series = await read(metrics)
    assert total(series, "trio_gateway_calls_total", outcome="refused", basis="none") == 1
    assert total(series, "gen_ai_client_token_usage_count") == 0
    assert total(series, "trio_gateway_upstream_calls_total") == 0


async def test_series_do_not_grow_with_keys_and_tenants():
    """Ten thousand keys of a thousand tenants leave as many series as one."""
    metrics = Metrics([BACKEND])
    metrics.ended(timeline(), 103.0)
    one = set(await read(metrics))
    for number in range(10_000):
        metrics.ended(timeline(key_id=f"key_{number}", tenant_id=f"ten_{number % 1000}"), 103.0)
    many = await read(metrics)
    assert set(many) == one
    assert total(many, "trio_gateway_calls_total") == 10_001


async def test_series_do_not_grow_with_models_without_end():
    """After so many names of models, whatever comes later is `other`."""
    metrics = Metrics([BACKEND])
    for number in range(3 * MOST_NAMES):
        metrics.ended(timeline(model=f"model-{number}:latest"), 103.0)
    series = await read(metrics)
    shown = {dict(labels).get("gen_ai_request_model") for _, labels in series} - {None}
    assert len(shown) == MOST_NAMES + 1
    by_name = total(series, "gen_ai_client_token_usage_count", gen_ai_request_model="other")
    assert by_name == 2 * 2 * MOST_NAMES


async def test_restarts_do_not_lift_the_bound_on_models(tmp_path, place):
    """A worker that goes on with its predecessor's files knows the names that are in them."""
    for start in (0, 40, 80):
        with open_metrics(environ=place) as metrics:
            for number in range(start, start + 40):
                metrics.ended(timeline(model=f"model-{number}:latest"), 103.0)
            series = await read(metrics)
    shown = {dict(labels).get("gen_ai_request_model") for _, labels in series} - {None}
    assert len(shown) == MOST_NAMES + 1


def test_a_name_that_is_known_stays_when_no_more_are_taken():
    """The bound is on new names."""
    names = Names({"other"}, most=2)
    assert [names(name) for name in ("a", "b", "c", "a")] == ["a", "b", "other", "a"]


def test_backends_are_labelled_without_their_passwords():
    """Host and port; twins are told apart."""
    urls = [BACKEND, "https://gpu-two", "http://a:b@gpu-two/ollama", "http://[::1]:9"]
    assert list(labels_of(urls).values()) == [
        "gpu-one:11434",
        "gpu-two",
        "gpu-two#2",
        "[::1]:9",
    ]


async def test_a_worker_that_lost_a_store_says_so():
    """Redis away, or nobody to prove keys by: the limiter admits nobody."""
    for away in ("informed", "redis"):
        metrics = Metrics([BACKEND])
        metrics.sample(sample())
        assert total(await read(metrics), "trio_gateway_limiter_admitting") == 1
        metrics.sample(sample(**{away: False}))
        assert total(await read(metrics), "trio_gateway_limiter_admitting") == 0
    metrics.sample(sample(listening=False))
    series = await read(metrics)
    assert total(series, "trio_gateway_listener_up") == 0
    assert total(series, "trio_gateway_limiter_admitting") == 1


@pytest.mark.parametrize("threshold", [80, 100])
async def test_budget_notices_are_there_before_the_first(threshold):
    """An increase is only seen from a count that was scraped before."""
    metrics = Metrics()
    name, labels = "trio_gateway_budget_notices_total", {"threshold": str(threshold)}
    assert (name, tuple(labels.items())) in await read(metrics)
    metrics.budget_notice(threshold)
    assert total(await read(metrics), name, **labels) == 1


@pytest.mark.parametrize(
    ("name", "label", "values"),
    [
        ("calls_cut", "reason", CUTS),
        ("batch_lines", "outcome", LINE_ENDS),
        ("batches_ended", "status", BATCH_ENDS),
        ("file_bytes", "direction", DIRECTIONS),
        ("charged_tokens", "basis", ("final", "partial", "estimated")),
    ],
)
async def test_counters_begin_with_each_value_of_a_closed_label(name, label, values):
    """For the same reason, and at 0."""
    series = await read(Metrics())
    whole = f"trio_gateway_{name}_total"
    found = {pairs: value for (each, pairs), value in series.items() if each == whole}
    assert found == {((label, value),): 0 for value in values}


@contextlib.contextmanager
def stopped(*pids):
    """Let processes hang until the block ends."""
    try:
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
        yield
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGCONT)


async def test_a_scrape_waits_for_no_database_that_hangs(tmp_path, monkeypatch):
    """Whatever asyncpg itself waits for; what the processes counted is shown, and that it hangs."""
    monkeypatch.setattr(client, "CONNECT_LIMIT", 600.0)
    monkeypatch.setattr(client, "COMMAND_LIMIT", 600.0)
    with embedded.start(tmp_path / "stores") as running:
        await trio.to_thread.run_sync(upgrade, running.database_url)
        async with open_bridge() as bridge, open_postgres(bridge, running.database_url) as postgres:
            monkeypatch.setattr(exposition, "STORE_LIMIT", 60.0)
            assert total(await read(Metrics(), postgres), "trio_gateway_database_up") == 1
            (row,) = await postgres.fetch("SELECT pg_backend_pid() AS backend")
            file = tmp_path / "stores" / "postgres" / "postmaster.pid"
            server = int(file.read_text().split()[0])
            monkeypatch.setattr(exposition, "STORE_LIMIT", 0.2)
            with stopped(server, row["backend"]), trio.fail_after(60):
                await away(Metrics(), postgres)


async def test_a_scrape_shows_what_is_counted_while_there_is_no_database(database):
    """It says that it is away."""
    async with (
        open_door(database) as door,
        open_bridge() as bridge,
        open_postgres(bridge, door.url) as postgres,
    ):
        door.shut()
        await away(Metrics(), postgres)


async def away(metrics, postgres):
    series = await read(metrics, postgres)
    assert total(series, "trio_gateway_database_up") == 0
    assert "trio_gateway_charged_tokens_total" in names(series)
    assert "trio_gateway_batches_open" not in names(series)


async def test_open_batches_and_lines_are_read_from_the_database(postgres, monkeypatch):
    """An empty queue is shown as zeros, not as nothing."""
    monkeypatch.setattr(exposition, "STORE_LIMIT", 60.0)  # a slow machine's answer is one too
    series = await read(Metrics(), postgres)
    assert total(series, "trio_gateway_database_up") == 1
    assert {
        dict(have)["status"] for name, have in series if name == "trio_gateway_batches_open"
    } == set(exposition.STATUSES)


def test_every_inference_route_is_an_operation():
    """A new route cannot be forgotten."""
    assert set(OPERATIONS) == set(INFERENCE)


async def test_the_joined_text_is_what_the_library_says(tmp_path, place):
    """Against its own collector: every series, every number, with several processes' files."""
    workers = [child(tmp_path, slot) for slot in ("w1", "w2")]
    try:
        with open_metrics([BACKEND], place) as metrics:
            for outcome in Outcome:
                metrics.ended(timeline(outcome=outcome, model=f'"{outcome}\\\n'), 103.0)
            metrics.sample(sample(live=5, redis=False))
            for more in range(2):  # also where files have grown since they were parsed
                metrics.refused(f"code-{more}")
                registry = CollectorRegistry()
                MultiProcessCollector(registry, str(tmp_path))
                said = parse(generate_latest(registry).decode())
                assert await read(metrics) == said
                assert total(said, "trio_gateway_live_calls") == 11
                assert total(said, "trio_gateway_redis_connected") == 0
    finally:
        for worker in workers:
            kill(worker)
