"""How soon a hang-up stops the model server, in every phase of a call.

    python -m tests.load.hangup_bench [times]

The client and the simulated Ollama read the same CLOCK_MONOTONIC. A call that still waits in
line has nothing upstream: there the end of its account is taken, by the wall clock.
"""

from __future__ import annotations

import asyncio
import json
import socket
import sys
import time
import urllib.request
from collections.abc import Callable
from typing import Any

from rich.console import Console
from rich.table import Table

from tests.load import client, targets
from trio_gateway.clients.postgres import run_once

SLOW: dict[str, Any] = {"tokens": 50, "token_gap": 30}
QUEUED = """
SELECT extract(epoch FROM started_at)::float8 + duration_ms / 1000 AS ended_at
FROM gateway.ledger WHERE backend IS NULL ORDER BY started_at
"""
STALLED = 0.15  # seconds without another token: nobody reads any more


class Bench:
    """One worker with one slot, in front of the simulated Ollama."""

    def __init__(self, port: int, control: str, key: str) -> None:
        self.port = port
        self.control = control + "/_sim/"
        self.headers = {"authorization": f"Bearer {key}"}

    def state(self, query: str = "") -> Any:
        """What the simulated Ollama has seen."""
        with urllib.request.urlopen(self.control + "state" + query, timeout=40) as answer:
            return json.loads(answer.read())

    def play(self, script: dict[str, Any]) -> None:
        """Replace its script."""
        targets.post(self.control + "script", json.dumps(script).encode())

    def call(self, *, stream: bool = True, behind: bytes = b"") -> socket.socket:
        """Send a call on a connection of its own."""
        body = {"model": "llama3.2", "messages": [{"role": "user", "content": "x"}]}
        path = "/v1/chat/completions"
        encoded = json.dumps(body | {"stream": stream}).encode()
        sock = socket.create_connection(("127.0.0.1", self.port))
        sock.sendall(client.encode("localhost", path, encoded, self.headers) + behind)
        return sock

    def left(self, sock: socket.socket) -> float:
        """Hang up; return the seconds until upstream saw its connection close."""
        began = time.monotonic()
        sock.close()
        last = self.state("?open=0&timeout=10")["generations"][-1]
        assert last["end"] == "disconnected", last
        return float(last["ended_at"] - began)


def begun(bench: Bench, **call: Any) -> socket.socket:
    """A call that has reached upstream."""
    before = bench.state()["started"]
    sock = bench.call(**call)
    bench.state(f"?started={before + 1}&timeout=10")
    return sock


def streaming(bench: Bench, **call: Any) -> socket.socket:
    """A stream whose first word has come."""
    sock = bench.call(**call)
    seen = b""
    while b"data: " not in seen:
        seen += sock.recv(65_536)
    return sock


def flooded(bench: Bench) -> socket.socket:
    """A stream that is not read, until nothing of it moves any more."""
    sock = streaming(bench)
    tokens = -1
    while (now := bench.state()["generations"][-1]["tokens"]) != tokens:
        tokens = now
        time.sleep(STALLED)
    return sock


PHASES: dict[str, tuple[dict[str, Any], Callable[[Bench], socket.socket]]] = {
    "loading": ({"head_delay": 30}, begun),
    "loading, whole answer": ({"head_delay": 30}, lambda bench: begun(bench, stream=False)),
    "no head at all": ({"never_answers": True}, begun),
    "streaming": (SLOW, streaming),
    "whole answer under way": (SLOW, lambda bench: begun(bench, stream=False)),
    "not reading a flood": ({"flood": True}, flooded),
    "bytes behind the request": (SLOW, lambda b: streaming(b, behind=b"GET / HTTP/1.1\r\n")),
}


def queued(bench: Bench, database_url: str, times: int) -> list[float]:
    """Leave the line, the one slot being taken; seconds until the account is closed."""
    bench.play(SLOW)
    holder = streaming(bench)
    left = []
    for _ in range(times):
        sock = bench.call()
        time.sleep(0.05)
        left.append(time.time())
        sock.close()
        time.sleep(0.02)
    holder.close()
    bench.state("?open=0&timeout=10")
    time.sleep(1)  # for the last rows
    ended = [row["ended_at"] for row in asyncio.run(run_once(database_url, QUEUED))]
    assert len(ended) == times, len(ended)
    return [max(0.0, end - start) for start, end in zip(left, ended, strict=True)]


def main(times: int) -> None:
    """Measure every phase, print one table."""
    table = Table(title=f"Hang-up to upstream close, ms, {times} calls each")
    for column in ("phase", "p50", "p99", "most"):
        table.add_column(column, justify="left" if column == "phase" else "right")

    def show(phase: str, seconds: list[float]) -> None:
        sample = client.Sample(latencies=seconds)
        figures = [sample.percentile(share) for share in (0.5, 0.99, 1)]
        table.add_row(phase, *(f"{ms:.1f}" for ms in figures))

    with (
        targets.simulator() as ollama,
        targets.installation() as (env, key),
        targets.gateway("gateway", env, ollama, backend_slots=1) as target,
    ):
        bench = Bench(target.port, ollama, key)
        show("queued", queued(bench, env["DATABASE_URL"], times))
        for phase, (script, begin) in PHASES.items():
            bench.play(script)
            show(phase, [bench.left(begin(bench)) for _ in range(times)])
    Console().print(table)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 50)
