"""One script call, by redis.asyncio through trio-asyncio and by our own client, in one run.

python -m tests.load.redis_bench
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import redis.asyncio as aioredis
import trio
from rich.console import Console
from rich.table import Table

from trio_gateway.clients.bridge import open_bridge
from trio_gateway.clients.redis import Redis
from trio_gateway.embedded import stores

CALLS = 4000
SCRIPT = "return redis.call('HINCRBY', KEYS[1], ARGV[1], 1)"


async def spend(call: Callable[[], Awaitable[object]], tasks: int) -> float:
    """Return the CPU milliseconds of one call, this many tasks at once."""

    async def one() -> None:
        for _ in range(CALLS // tasks):
            await call()

    began = time.process_time()
    async with trio.open_nursery() as nursery:
        for _ in range(tasks):
            nursery.start_soon(one)
    return 1000 * (time.process_time() - began) / CALLS


async def main(url: str) -> None:
    """Measure both, alone and sixteen at once, twice in turn."""
    table = Table(title=f"CPU ms for one EVALSHA, {CALLS} calls")
    for column in ("client", "alone", "16 at once"):
        table.add_column(column)
    async with open_bridge() as bridge, trio.open_nursery() as nursery:
        own = Redis(url, {"bump": SCRIPT})
        await nursery.start(own.run)
        theirs: Any = aioredis.Redis.from_url(url)
        digest: Any = await bridge.run(theirs.script_load, SCRIPT)
        clients: dict[str, Callable[[], Awaitable[object]]] = {
            "redis.asyncio through trio-asyncio": lambda: bridge.run(
                theirs.evalsha, digest, 1, "bench", "a"
            ),
            "own": lambda: own.script("bump", ["bench"], ["a"]),
        }
        figures: dict[str, list[float]] = {name: [9e9, 9e9] for name in clients}
        for _ in range(3):
            for name, call in clients.items():
                for at, tasks in enumerate((1, 16)):
                    figures[name][at] = min(figures[name][at], await spend(call, tasks))
        for name, (alone, together) in figures.items():
            table.add_row(name, f"{alone:.3f}", f"{together:.3f}")
        await bridge.run(theirs.aclose)
        nursery.cancel_scope.cancel()
    Console().print(table)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder, stores.start(Path(folder) / "d") as pair:
        trio.run(main, pair.redis_url)
