"""How long a scrape takes, by the number of workers and models: python -m tests.load.scrape_bench.

Each worker is a process that has filled its files with calls of every endpoint, outcome and
model. PostgreSQL is not asked: what it may add is bounded by STORE_LIMIT.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import trio
from rich.console import Console
from rich.table import Table

from tests.services.test_metrics import BACKEND, row, sample, timeline
from trio_gateway.core.domain import Outcome
from trio_gateway.core.timeline import OPERATIONS
from trio_gateway.services.metrics import exposition
from trio_gateway.services.metrics.metrics import Metrics, open_metrics
from trio_gateway.services.metrics.place import FOLDER, SLOT

CASES = ((1, 5), (4, 5), (8, 5), (16, 5), (4, 50), (8, 50))  # workers, models
ROUNDS = 100
ROOT = Path(__file__).resolve().parents[2]


def fill(metrics: Metrics, models: int) -> None:
    """Make every series that a worker with so many models ever has."""
    for number in range(models):
        for outcome in Outcome:
            for endpoint in OPERATIONS:
                call = timeline()
                call.endpoint = endpoint
                found = row(model=f"model-{number}:latest", endpoint=endpoint, outcome=outcome)
                call.row = replace(found, backend=BACKEND)
                metrics.ended(call, 103.0)
    metrics.sample(sample())


def work(models: int) -> None:
    """Be one worker: fill the files, and stay alive until stdin ends."""
    with open_metrics([BACKEND]) as metrics:
        fill(metrics, models)
        sys.stdout.write("full\n")
        sys.stdout.flush()
        sys.stdin.read()


def start(folder: str, slot: str, models: int) -> subprocess.Popen[bytes]:
    """Start one worker and wait until its files are full."""
    words = [sys.executable, "-m", "tests.load.scrape_bench", str(models)]
    environ = os.environ | {FOLDER: folder, SLOT: slot}
    worker = subprocess.Popen(
        words, cwd=ROOT, env=environ, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert worker.stdout is not None
    assert worker.stdout.readline() == b"full\n"
    return worker


async def measure(metrics: Metrics) -> tuple[list[float], bytes]:
    """Scrape again and again; return the milliseconds and the last text."""
    took = []
    for _ in range(ROUNDS):
        began = time.perf_counter()
        text, _ = await exposition.scrape(metrics)
        took.append((time.perf_counter() - began) * 1000)
    return took, text


def main() -> None:
    """Print one table."""
    table = Table(title="A scrape of all processes' files")
    for column in ("workers", "models", "series", "KB", "median ms", "p99 ms"):
        table.add_column(column, justify="right")
    for workers, models in CASES:
        with tempfile.TemporaryDirectory() as folder:
            os.environ[FOLDER] = folder
            running = [start(folder, f"w{number}", models) for number in range(workers)]
            with open_metrics(environ={FOLDER: folder, SLOT: "admin"}) as metrics:
                took, text = trio.run(partial(measure, metrics))
            for worker in running:
                worker.communicate()
        series = sum(not line.startswith(b"#") for line in text.splitlines())
        p99 = statistics.quantiles(took, n=100)[98]
        cells = [workers, models, series, len(text) // 1000]
        table.add_row(*map(str, cells), f"{statistics.median(took):.1f}", f"{p99:.1f}")
    Console().print(table)


if __name__ == "__main__":
    if len(sys.argv) > 1:
        work(int(sys.argv[1]))
    else:
        main()
