"""How soon a revocation is felt: by a live stream, and by the next call, on two workers.

    python -m tests.load.revocation_bench [times]

A row in gateway.revocations is all that is written; the clock starts before the INSERT.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from typing import Any

import trio
from rich.console import Console
from rich.table import Table

from tests.load import client, targets
from trio_gateway.clients.bridge import open_bridge
from trio_gateway.clients.postgres import connect, open_postgres
from trio_gateway.services.keyring import Keyring
from trio_gateway.services.tenant_rows import read_installation_secret

REVOKE = "INSERT INTO gateway.revocations (key_id, reason) VALUES ($1, 'bench')"
PAUSE = 0.002  # seconds between two tries with the key
Keys = list[dict[str, Any]]


async def issue(database_url: str, times: int) -> Keys:
    """Make the keys to revoke."""
    async with open_bridge() as bridge, open_postgres(bridge, database_url, size=1) as postgres:
        ring = Keyring(postgres, await read_installation_secret(postgres), "bench")
        return [dict(await ring.issue("default", {"name": f"k{n}"})) for n in range(times)]


def encode(key: str, path: str, body: dict[str, Any]) -> bytes:
    """Write a request; GET where there is no body."""
    headers = {"authorization": f"Bearer {key}"}
    written = client.encode("localhost", path, json.dumps(body).encode() if body else b"", headers)
    return written if body else written.replace(b"POST", b"GET", 1)


async def refused(port: int, key: str, warm: asyncio.Event) -> float:
    """Use the key until it is refused; return when."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    request, sample = encode(key, "/api/version", {}), client.Sample()
    while 401 not in sample.statuses:
        await client.exchange(reader, writer, request, sample)
        warm.set()
        await asyncio.sleep(PAUSE)
    writer.close()
    return time.perf_counter()


async def cut(port: int, key: str, warm: asyncio.Event) -> float:
    """Read a slow stream until its error event; return when."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    body = {"model": "llama3.2", "messages": [{"role": "user", "content": "x"}], "stream": True}
    writer.write(encode(key, "/v1/chat/completions", body))
    await reader.readuntil(b"data: ")
    warm.set()
    await reader.readuntil(b'"error"')
    writer.close()
    return time.perf_counter()


async def revoke(dsn: str, ports: list[int], keys: Keys) -> dict[str, list[float]]:
    """Revoke one key after the other; return the seconds for each of what was felt."""
    connection = await connect(dsn)
    felt: dict[str, list[float]] = {}
    for key in keys:
        watching: dict[str, tuple[asyncio.Task[float], asyncio.Event]] = {}
        for number, port in enumerate(ports, 1):
            for what, watch in (("live stream cut", cut), ("next call refused", refused)):
                warm = asyncio.Event()
                task = asyncio.create_task(watch(port, key["key"], warm))
                watching[f"{what}, worker {number}"] = (task, warm)
        async with asyncio.timeout(10):
            for _, warm in watching.values():
                await warm.wait()
            began = time.perf_counter()
            await connection.execute(REVOKE, key["id"])
            for name, (task, _) in watching.items():
                felt.setdefault(name, []).append(await task - began)
    await connection.close()
    return felt


def main(times: int) -> None:
    """Measure, print one table."""
    table = Table(title=f"INSERT into gateway.revocations to its effect, ms, {times} keys")
    for column in ("effect", "p50", "p99", "most"):
        table.add_column(column, justify="left" if column == "effect" else "right")
    with (
        targets.simulator() as ollama,
        targets.installation() as (env, _key),
        targets.gateway("one", env, ollama) as one,
        targets.gateway("two", env, ollama) as two,
    ):
        slow = json.dumps({"tokens": 1000, "token_gap": 0.05}).encode()
        targets.post(ollama + "/_sim/script", slow)
        keys = trio.run(issue, env["DATABASE_URL"], times)
        ports = [one.port, two.port]
        for name, seconds in asyncio.run(revoke(env["DATABASE_URL"], ports, keys)).items():
            sample = client.Sample(latencies=seconds)
            figures = [sample.percentile(share) for share in (0.5, 0.99, 1)]
            table.add_row(name, *(f"{ms:.1f}" for ms in figures))
    Console().print(table)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 50)
