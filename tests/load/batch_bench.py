"""Lines of a batch against live calls: python -m tests.load.batch_bench [lines, 50,000 at most].

One worker with every check on and a model server that costs next to nothing. Rounds of live
calls and batches alternate, so that a noisy machine is noisy for both. Then one batch of so many
lines for the times of validation and of finishing, and live calls beside a running batch.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import resource
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import httpx
from rich.console import Console
from rich.table import Table

from tests.load import client, targets
from tests.load.ratio_bench import CHAT, LIMITS
from tests.load.targets import Target, upstream
from trio_gateway.clients.postgres import run_once

ROUNDS = 3
AT_ONCE = 16  # calls, and lines, in flight
LINES = 3000  # of one round
TOKENS, GAP = 20, 0.01  # of a line beside live calls: a model that takes 0.2 s
BESIDE = 4  # lines in flight beside live calls, as by default
PACED = 500  # live calls of one round, 50 a second
TIMES = """
SELECT extract(epoch FROM in_progress_at - created_at)::float8 AS validating,
    extract(epoch FROM finalizing_at - in_progress_at)::float8 AS running,
    extract(epoch FROM completed_at - finalizing_at)::float8 AS finishing
FROM gateway.batches WHERE id = $1
"""


@dataclass
class Bench:
    """A running gateway, its database, and a client with a key."""

    target: Target
    database_url: str
    http: httpx.Client
    key: str

    def live(self, path: str = "/v1/chat/completions", **body: object) -> bytes:
        """Encode one live call."""
        headers = {"authorization": f"Bearer {self.key}"}
        return client.encode("localhost", path, json.dumps(CHAT | body).encode(), headers)

    def begin(self, lines: int, **body: object) -> str:
        """Upload a file of so many lines and create a batch of it; return its id."""
        request = {"method": "POST", "url": "/v1/chat/completions", "body": CHAT | body}
        text = "".join(
            json.dumps({"custom_id": f"request-{number}"} | request) + "\n"
            for number in range(lines)
        )
        answer = self.http.post(
            "/v1/files", data={"purpose": "batch"}, files={"file": ("input.jsonl", text.encode())}
        )
        answer.raise_for_status()
        wanted = {
            "input_file_id": answer.json()["id"],
            "endpoint": "/v1/chat/completions",
            "completion_window": "24h",
        }
        created = self.http.post("/v1/batches", json=wanted)
        created.raise_for_status()
        return str(created.json()["id"])

    def end(self, batch_id: str, pause: float = 0.2) -> dict[str, float]:
        """Wait for a batch to complete; return how many seconds its steps took."""
        while (batch := self.http.get(f"/v1/batches/{batch_id}").json())["status"] != "completed":
            assert batch["status"] in {"validating", "in_progress", "finalizing"}, batch
            time.sleep(pause)
        assert batch["request_counts"]["failed"] == 0, batch
        return dict(asyncio.run(run_once(self.database_url, TIMES, batch_id))[0])

    def cancel(self, batch_id: str) -> None:
        """Cancel a batch."""
        self.http.post(f"/v1/batches/{batch_id}/cancel").raise_for_status()


@contextlib.contextmanager
def bench(direct: Target, concurrency: int) -> Iterator[Bench]:
    """Run one worker on private stores."""
    with (
        targets.installation() as (env, key),
        tempfile.TemporaryDirectory() as folder,
    ):
        for table in ("tenants", "api_keys"):
            asyncio.run(run_once(env["DATABASE_URL"], LIMITS.format(table)))
        url = f"http://127.0.0.1:{direct.port}"
        blobs = (Path(folder) / "blobs").as_uri()
        with (
            targets.gateway(
                "gateway", env, url, backend_slots=64, batch_concurrency=concurrency, blob_url=blobs
            ) as target,
            httpx.Client(
                base_url=f"http://127.0.0.1:{target.port}",
                headers={"authorization": f"Bearer {key}"},
                timeout=60,
            ) as http,
        ):
            yield Bench(target, env["DATABASE_URL"], http, key)


def rates(direct: Target) -> tuple[float, float, float, float]:
    """Return the rates of live calls and of lines, a second, and the CPU ms of each."""
    calls = lines = 0
    seconds, took, spent = 0.0, 0.0, 0.0
    spent_live = 0.0
    with bench(direct, AT_ONCE) as own:
        own.end(own.begin(200))  # warm up
        for _ in range(ROUNDS):
            before = own.target.cpu()
            sample = client.run(
                partial(
                    client.closed_loop,
                    own.target.port,
                    own.live(),
                    connections=AT_ONCE,
                    seconds=3,
                )
            )
            spent_live += own.target.cpu() - before
            assert set(sample.statuses) == {200}, sample.statuses
            calls, seconds = calls + len(sample.latencies), seconds + sample.seconds
            before = own.target.cpu()
            took += own.end(own.begin(LINES))["running"]
            spent += own.target.cpu() - before
            lines += LINES
    return calls / seconds, lines / took, 1000 * spent_live / calls, 1000 * spent / lines


def whole(direct: Target, lines: int) -> tuple[dict[str, float], float, float]:
    """Return how long the steps of one large batch took, and megabytes before and at most."""
    with bench(direct, AT_ONCE) as own:
        own.end(own.begin(200))
        before = most = own.target.rss()
        batch_id = own.begin(lines)
        while own.http.get(f"/v1/batches/{batch_id}").json()["status"] != "completed":
            most = max(most, own.target.rss())
            time.sleep(0.2)
        return own.end(batch_id), before, most


def beside(direct: Target) -> tuple[list[float], list[float]]:
    """Return p50 and p99 of live calls in ms, alone and beside a batch, over alternate rounds."""
    alone, busy = client.Sample(), client.Sample()
    with bench(direct, BESIDE) as own:
        request = own.live()
        client.run(partial(client.open_loop, own.target.port, request, rate=50, count=100))
        for _ in range(ROUNDS):
            for sample, batch in ((alone, False), (busy, True)):
                batch_id = own.begin(5000, model="paced") if batch else None
                if batch_id is not None:  # past its validation
                    while own.http.get(f"/v1/batches/{batch_id}").json()["status"] == "validating":
                        time.sleep(0.05)
                seen = client.run(
                    partial(client.open_loop, own.target.port, request, rate=50, count=PACED)
                )
                assert set(seen.statuses) == {200}, seen.statuses
                sample.latencies += seen.latencies
                if batch_id is not None:
                    own.cancel(batch_id)
    return (
        [alone.percentile(share) for share in (0.5, 0.99)],
        [busy.percentile(share) for share in (0.5, 0.99)],
    )


def main(lines: int) -> None:
    """Measure in turn, print one table."""
    table = Table(title="One run, one worker, every check on", show_header=False)
    with upstream(TOKENS, GAP) as direct:
        live, batch, live_cpu, batch_cpu = rates(direct)
        table.add_row("live calls, 16 at once", f"{live:.0f}/s, {live_cpu:.2f} ms CPU each")
        table.add_row("lines, 16 at once", f"{batch:.0f}/s, {batch_cpu:.2f} ms CPU each")
        table.add_row("lines to live calls (aim: 0.8)", f"{batch / live:.2f}")
        steps, before, most = whole(direct, lines)
        table.add_row(
            f"validation of {lines:,} lines (aim: < 10 s)", f"{steps['validating']:.1f} s"
        )
        table.add_row(f"running {lines:,} lines", f"{steps['running']:.1f} s")
        table.add_row(f"finishing {lines:,} lines (aim: < 10 s)", f"{steps['finishing']:.1f} s")
        table.add_row("memory meanwhile", f"{before:.0f} MB before, {most:.0f} MB at most")
        alone, busy = beside(direct)
        for at, name in enumerate(("p50", "p99")):
            change = 100 * (busy[at] / alone[at] - 1)
            figure = f"{alone[at]:.1f} ms alone, {busy[at]:.1f} ms beside a batch ({change:+.0f} %)"
            table.add_row(f"live {name}, 50/s" + (" (aim: +20 %)" if at else ""), figure)
    Console(width=120).print(table)


if __name__ == "__main__":
    _, most_files = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(most_files, 16_384), most_files))
    main(min(50_000, int(sys.argv[1])) if len(sys.argv) > 1 else 50_000)
