"""How fast a batch's file is validated, what it costs in memory, and how long others wait for it.

    python -m tests.load.validation_bench [lines]

A file of short lines and one of 200 MB, validated as a worker does it, in this process: the
stores are processes of their own. "longest wait" is that of a task that only wants its turn.
"""

from __future__ import annotations

import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import orjson
import trio
from rich.console import Console
from rich.table import Table

from tests.pipeline.validation_desk import ADD_FILE, CHAT, Desk, open_desk
from tests.stores import TestStores, fresh_database
from trio_gateway.clients.bridge import open_bridge
from trio_gateway.clients.postgres import open_postgres
from trio_gateway.core.batches import MOST_LINES
from trio_gateway.embedded import stores

BIG = 200 * 1024 * 1024  # bytes
MIB = 1024 * 1024


@dataclass
class Figures:
    """One file's validation: seconds, and bytes of memory."""

    size: int
    took: float
    cpu: float
    before: int
    peak: int
    waits: list[float]


def resident(field: str) -> int:
    """Return a figure of this process's memory, in bytes."""
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise LookupError(field)


def fresh_peak() -> int:
    """Let the peak of this process's memory start anew; return what it is now, in bytes."""
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    return resident("VmRSS")


async def upload(desk: Desk, lines: int, size: int) -> tuple[str, int]:
    """Write a file of so many lines and about so many bytes; return its id and size."""
    tenant_id = desk.principals["acme"].tenant.id
    file_id = f"file-{size:024x}"
    filling = "x" * max(0, size // lines - 200)
    body = {"model": "llama3.2", "messages": [{"role": "user", "content": f"Hello {filling}"}]}
    shape = {"custom_id": "request-%d", "method": "POST", "url": CHAT, "body": body}
    template = orjson.dumps(shape) + b"\n"
    async with desk.blobs.writer(f"files/{tenant_id}/{file_id}") as writer:
        for number in range(lines):
            await writer.write(template % number)
    blob = f"files/{tenant_id}/{file_id}"
    await desk.postgres.fetch(ADD_FILE, file_id, tenant_id, "batch", writer.size, blob, None)
    return file_id, writer.size


async def watch(waits: list[float]) -> None:
    """Want a turn for ever, and note how long each took to come."""
    while True:
        began = time.perf_counter()
        await trio.lowlevel.checkpoint()
        waits.append(time.perf_counter() - began)
        await trio.sleep(0.001)


async def measure(desk: Desk, lines: int, size: int) -> Figures:
    """Validate one file."""
    file_id, written = await upload(desk, lines, size)
    batch_id = await desk.batch(file_id)
    validator, waits = desk.validator(), list[float]()
    before = fresh_peak()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(watch, waits)
        began, cpu = time.perf_counter(), time.process_time()
        await validator.once()
        took, cpu = time.perf_counter() - began, time.process_time() - cpu
        nursery.cancel_scope.cancel()
    row = await desk.row(batch_id)
    assert (row["status"], row["total"]) == ("in_progress", lines), row["errors"]
    return Figures(written, took, cpu, before, resident("VmHWM"), waits)


async def main(pair: TestStores, database: str, folder: Path, lines: int) -> None:
    """Measure both files, the first one once before it counts."""
    async with (
        open_bridge() as bridge,
        open_postgres(bridge, database, size=4) as postgres,
        open_desk(postgres, pair.redis_url, folder) as desk,
    ):
        await measure(desk, 1000, 0)
        table = Table(title=f"validation of {lines:,} lines")
        for column in (
            "file MB",
            "seconds",
            "lines/s",
            "CPU s",
            "RSS before MiB",
            "peak MiB",
            "wait p99 ms",
            "longest wait ms",
        ):
            table.add_column(column, justify="right")
        for size in (lines, BIG):
            figures = await measure(desk, lines, size)
            waits = sorted(figures.waits)
            table.add_row(
                f"{figures.size / 1e6:.1f}",
                f"{figures.took:.2f}",
                f"{lines / figures.took:,.0f}",
                f"{figures.cpu:.2f}",
                f"{figures.before / MIB:.0f}",
                f"{figures.peak / MIB:.0f}",
                f"{waits[len(waits) * 99 // 100] * 1000:.1f}",
                f"{waits[-1] * 1000:.1f}",
            )
    Console().print(table)


if __name__ == "__main__":
    count = int(sys.argv[1]) if len(sys.argv) > 1 else MOST_LINES
    with tempfile.TemporaryDirectory() as place, stores.start(Path(place) / "d") as opened:
        addresses = TestStores(opened.database_url, opened.redis_url)
        with fresh_database(addresses) as url:
            trio.run(main, addresses, url, Path(place) / "blobs", count)
