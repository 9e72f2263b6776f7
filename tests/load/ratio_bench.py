"""The gateway against its own parts, in one run: python -m tests.load.ratio_bench [seconds].

Rounds of every target alternate, so that a noisy machine is noisy for all. The gateway runs
one worker with every check on: key, tenant and key windows, budgets, holds, ledger.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import trio
from rich.console import Console
from rich.table import Table

from tests.load import client
from tests.load.targets import Target, hypercorn, upstream
from trio_gateway import migrate
from trio_gateway.bootstrap import first_key
from trio_gateway.clients.postgres import run_once
from trio_gateway.embedded import stores

ROUNDS = 4
CONNECTIONS = 16
STREAMS = 20
TOKENS = 64
GAP = 0.02
CHAT = {"model": "llama3.2", "messages": [{"role": "user", "content": "say something short"}]}
LIMITS = """
UPDATE gateway.{} SET requests_per_minute = 10000000, tokens_per_minute = 10000000000,
    budget = 1000000000000
"""


@dataclass
class Figures:
    """What one target showed, summed over the rounds."""

    calls: int = 0
    seconds: float = 0.0
    cpu: float = 0.0
    tokens: int = 0
    stream_seconds: float = 0.0
    stream_cpu: float = 0.0
    paced: client.Sample = field(default_factory=client.Sample)
    rss: float = 0.0


@contextlib.contextmanager
def gateway(direct: Target) -> Iterator[tuple[Target, str]]:
    """Run one worker on private stores; yields the target and its key."""
    with tempfile.TemporaryDirectory() as folder, stores.start(Path(folder) / "data") as pair:
        migrate.upgrade(pair.database_url)
        _, key = trio.run(first_key, pair.database_url)
        for table in ("tenants", "api_keys"):
            asyncio.run(run_once(pair.database_url, LIMITS.format(table)))
        env = {
            "DATABASE_URL": pair.database_url,
            "REDIS_URL": pair.redis_url,
            "OLLAMA_BASE_URL": f"http://127.0.0.1:{direct.port}",
            "TRIO_GATEWAY_BACKEND_SLOTS": "1000",
            "TRIO_GATEWAY_TENANT_IN_FLIGHT": "100000",
            "TRIO_GATEWAY_LOG_LEVEL": "warning",
        }
        with hypercorn("gateway", "trio_gateway.asgi:app", env, "/readyz") as target:
            yield target, key


def measure(target: Target, headers: dict[str, str], seconds: float, figures: Figures) -> None:
    """One round: a closed loop of whole calls."""
    path = "/api/chat" if target.name == "direct upstream" else "/v1/chat/completions"
    body = CHAT | {"stream": False}
    request = client.encode("localhost", path, json.dumps(body).encode(), headers)
    before = target.cpu()
    sample = client.run(
        partial(
            client.closed_loop, target.port, request, connections=CONNECTIONS, seconds=seconds
        )
    )
    assert set(sample.statuses) == {200}, sample.statuses
    figures.calls += len(sample.latencies)
    figures.seconds += sample.seconds
    figures.cpu += target.cpu() - before
    figures.rss = target.rss()


def measure_paced(target: Target, headers: dict[str, str], figures: Figures) -> None:
    """Fifty calls a second, for latency."""
    path = "/api/chat" if target.name == "direct upstream" else "/v1/chat/completions"
    request = client.encode(
        "localhost", path, json.dumps(CHAT | {"stream": False}).encode(), headers
    )
    sample = client.run(partial(client.open_loop, target.port, request, rate=50, count=250))
    figures.paced.latencies += sample.latencies


def measure_streams(target: Target, headers: dict[str, str], figures: Figures) -> None:
    """One round of paced streams, for the cost of a token."""
    body = CHAT | {"model": "paced", "stream": True}
    request = client.encode(
        "localhost", "/v1/chat/completions", json.dumps(body).encode(), headers
    )
    before = target.cpu()
    sample = client.run(partial(client.streams, target.port, request, count=STREAMS))
    assert set(sample.statuses) == {200}, sample.statuses
    figures.tokens += STREAMS * TOKENS
    figures.stream_seconds += sample.seconds
    figures.stream_cpu += target.cpu() - before
    figures.rss = max(figures.rss, target.rss())


def show(figures: dict[str, Figures]) -> None:
    """Print the table."""
    table = Table(title="One run, one worker each, every check of the gateway on")
    columns = ["target", "req/s", "of echo", "CPU ms/call", "p50 ms @50/s", "p99 ms @50/s"]
    columns += ["added p50", "added p99", "tokens/s", "CPU us/token", "RSS MB"]
    for column in columns:
        table.add_column(column, justify="left" if column == "target" else "right")
    echo = figures["bare echo"].calls / figures["bare echo"].seconds
    direct = figures["direct upstream"].paced
    for name, f in figures.items():
        rate = f.calls / f.seconds
        added = [f.paced.percentile(p) - direct.percentile(p) for p in (0.5, 0.99)]
        table.add_row(
            name,
            f"{rate:.0f}",
            f"{rate / echo:.2f}",
            f"{1000 * f.cpu / f.calls:.2f}",
            *(f"{f.paced.percentile(p):.1f}" for p in (0.5, 0.99)),
            *(f"{ms:+.1f}" if name == "gateway" else "" for ms in added),
            f"{f.tokens / f.stream_seconds:.0f}" if f.tokens else "",
            f"{1e6 * f.stream_cpu / f.tokens:.0f}" if f.tokens else "",
            f"{f.rss:.0f}",
        )
    Console(width=150).print(table)


def main(seconds: float) -> None:
    """Start every target, measure in turn, print."""
    with contextlib.ExitStack() as stack:
        direct = stack.enter_context(upstream(TOKENS, GAP))
        env = {"OLLAMA_BASE_URL": f"http://127.0.0.1:{direct.port}"}
        echo = stack.enter_context(hypercorn("bare echo", "tests.load.apps:echo", env))
        relay = stack.enter_context(hypercorn("plain httpx", "tests.load.apps:relay", env))
        gate, key = stack.enter_context(gateway(direct))
        headers = {"authorization": f"Bearer {key}"}
        targets = [direct, echo, relay, gate]
        figures = {target.name: Figures() for target in targets}
        for target in targets:  # warm up
            measure(target, headers, 0.5, Figures())
        for _ in range(ROUNDS):
            for target in targets:
                measure(target, headers, seconds / ROUNDS, figures[target.name])
            for target in (relay, gate):
                measure_streams(target, headers, figures[target.name])
        for target in targets:
            measure_paced(target, headers, figures[target.name])
        show(figures)


if __name__ == "__main__":
    os.environ.setdefault("PYTHONHASHSEED", "0")
    main(float(sys.argv[1]) if len(sys.argv) > 1 else 8.0)
