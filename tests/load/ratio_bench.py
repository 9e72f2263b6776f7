"""The gateway against its own parts, in one run: python -m tests.load.ratio_bench [seconds].

Rounds of every target alternate, so that a noisy machine is noisy for all. The gateway runs
one worker with every check on: key, tenant and key windows, budgets, holds, ledger.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import resource
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial

from rich.console import Console
from rich.table import Table

from tests.load import client, targets
from tests.load.targets import Target, hypercorn, upstream
from trio_gateway.clients.postgres import run_once

ROUNDS = 4
CONNECTIONS = 16
STREAMS = (20, 100)
OPEN = 1000  # streams at once, for memory; each gets a word every SLOW_GAP
SLOW_TOKENS, SLOW_GAP = 6, 2.0
TOKENS = 64
GAP = 0.02
CHAT = {"model": "llama3.2", "messages": [{"role": "user", "content": "say something short"}]}
LIMITS = """
UPDATE gateway.{} SET requests_per_minute = 10000000, tokens_per_minute = 10000000000,
    budget = 1000000000000
"""


@dataclass
class Streams:
    """What so many streams at once showed."""

    tokens: int = 0
    seconds: float = 0.0
    cpu: float = 0.0


@dataclass
class Figures:
    """What one target showed, summed over the rounds."""

    calls: int = 0
    seconds: float = 0.0
    cpu: float = 0.0
    streams: dict[int, Streams] = field(default_factory=dict)  # by how many at once
    paced: client.Sample = field(default_factory=client.Sample)
    rss: float = 0.0


@contextlib.contextmanager
def gateway(direct: Target) -> Iterator[tuple[Target, str]]:
    """Run one worker on private stores; yields the target and its key."""
    with targets.installation() as (env, key):
        for table in ("tenants", "api_keys"):
            asyncio.run(run_once(env["DATABASE_URL"], LIMITS.format(table)))
        url = f"http://127.0.0.1:{direct.port}"
        with targets.gateway(
            "gateway", env, url, backend_slots=2000, tenant_in_flight=100_000
        ) as target:
            yield target, key


def measure(target: Target, headers: dict[str, str], seconds: float, figures: Figures) -> None:
    """One round: a closed loop of whole calls."""
    path = "/api/chat" if target.name == "direct upstream" else "/v1/chat/completions"
    body = CHAT | {"stream": False}
    request = client.encode("localhost", path, json.dumps(body).encode(), headers)
    before = target.cpu()
    sample = client.run(
        partial(client.closed_loop, target.port, request, connections=CONNECTIONS, seconds=seconds)
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


def measure_streams(target: Target, headers: dict[str, str], figures: Figures, count: int) -> None:
    """One round of paced streams, for the cost of a token."""
    body = CHAT | {"model": "paced", "stream": True}
    request = client.encode("localhost", "/v1/chat/completions", json.dumps(body).encode(), headers)
    before = target.cpu()
    sample = client.run(partial(client.streams, target.port, request, count=count))
    assert set(sample.statuses) == {200}, sample.statuses
    seen = figures.streams.setdefault(count, Streams())
    seen.tokens += count * TOKENS
    seen.seconds += sample.seconds
    seen.cpu += target.cpu() - before
    figures.rss = max(figures.rss, target.rss())


def show(figures: dict[str, Figures]) -> None:
    """Print the table."""
    table = Table(title="One run, one worker each, every check of the gateway on")
    columns = ["target", "req/s", "of echo", "CPU ms/call", "p50 ms @50/s", "p99 ms @50/s"]
    columns += ["added p50", "added p99"]
    columns += [f"CPU us/token, {count} streams" for count in STREAMS] + ["RSS MB"]
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
            *(_per_token(f.streams.get(count)) for count in STREAMS),
            f"{f.rss:.0f}",
        )
    Console(width=150).print(table)


def _per_token(seen: Streams | None) -> str:
    if seen is None:
        return ""
    return f"{1e6 * seen.cpu / seen.tokens:.0f} ({seen.tokens / seen.seconds:.0f}/s)"


def measure_memory() -> tuple[float, float]:
    """Return the resident megabytes of a worker at rest, and with OPEN streams open."""
    with upstream(SLOW_TOKENS, SLOW_GAP) as direct, gateway(direct) as (target, key):
        body = CHAT | {"model": "paced", "stream": True}
        headers = {"authorization": f"Bearer {key}"}
        request = client.encode(
            "localhost", "/v1/chat/completions", json.dumps(body).encode(), headers
        )
        atrest = target.rss()
        sample, most = client.watched(
            partial(client.streams, target.port, request, count=OPEN), target.rss
        )
        assert sample.statuses == {200: OPEN}, sample.statuses
        return atrest, most


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
                for count in STREAMS:
                    measure_streams(target, headers, figures[target.name], count)
        for target in targets:
            measure_paced(target, headers, figures[target.name])
        show(figures)
    atrest, most = measure_memory()
    Console().print(f"memory: {atrest:.0f} MB at rest, {most:.0f} MB with {OPEN} streams open")


if __name__ == "__main__":
    os.environ.setdefault("PYTHONHASHSEED", "0")
    _, most_files = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(most_files, 16_384), most_files))
    main(float(sys.argv[1]) if len(sys.argv) > 1 else 8.0)
