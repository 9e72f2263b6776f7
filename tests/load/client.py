"""A lean load client: keep-alive connections over asyncio streams, next to no parsing."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Sample:
    """What one run saw; times in seconds."""

    seconds: float = 0.0
    latencies: list[float] = field(default_factory=list)
    statuses: dict[int, int] = field(default_factory=dict)
    chunks: int = 0

    @property
    def rate(self) -> float:
        """Answers a second."""
        return len(self.latencies) / self.seconds if self.seconds else 0.0

    def percentile(self, share: float) -> float:
        """Return a latency percentile in milliseconds."""
        ordered = sorted(self.latencies)
        return ordered[min(len(ordered) - 1, int(share * len(ordered)))] * 1000 if ordered else 0.0


def encode(host: str, path: str, body: bytes, headers: dict[str, str]) -> bytes:
    """Write one POST."""
    lines = [f"POST {path} HTTP/1.1", f"host: {host}", f"content-length: {len(body)}"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


async def exchange(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, request: bytes, sample: Sample
) -> None:
    """Send one request and read its answer to the end."""
    began = time.perf_counter()
    writer.write(request)
    head = await reader.readuntil(b"\r\n\r\n")
    status = int(head[9:12])
    lowered = head.lower()
    if b"transfer-encoding: chunked" in lowered:
        while size := int(await reader.readuntil(b"\r\n"), 16):
            piece = await reader.readexactly(size + 2)
            sample.chunks += piece.count(b"\ndata: ") + piece.startswith(b"data: ")
        await reader.readexactly(2)
    else:
        at = lowered.index(b"content-length: ") + 16
        await reader.readexactly(int(lowered[at : lowered.index(b"\r\n", at)]))
    sample.latencies.append(time.perf_counter() - began)
    sample.statuses[status] = sample.statuses.get(status, 0) + 1


async def closed_loop(port: int, request: bytes, *, connections: int, seconds: float) -> Sample:
    """Keep every connection busy for a while."""
    sample = Sample()
    until = time.perf_counter() + seconds

    async def worker() -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        while time.perf_counter() < until:
            await exchange(reader, writer, request, sample)
        writer.close()

    began = time.perf_counter()
    await asyncio.gather(*(worker() for _ in range(connections)))
    sample.seconds = time.perf_counter() - began
    return sample


async def open_loop(port: int, request: bytes, *, rate: float, count: int) -> Sample:
    """Send at a fixed rate, whatever the answers do."""
    sample = Sample()
    idle: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []

    async def one() -> None:
        pair = idle.pop() if idle else await asyncio.open_connection("127.0.0.1", port)
        await exchange(*pair, request, sample)
        idle.append(pair)

    began = time.perf_counter()
    tasks = []
    for number in range(count):
        await asyncio.sleep(max(0.0, began + number / rate - time.perf_counter()))
        tasks.append(asyncio.create_task(one()))
    await asyncio.gather(*tasks)
    sample.seconds = time.perf_counter() - began
    for _, writer in idle:
        writer.close()
    return sample


async def streams(port: int, request: bytes, *, count: int) -> Sample:
    """Run this many streams at once, each to its end."""
    sample = Sample()

    async def one() -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        await exchange(reader, writer, request, sample)
        writer.close()

    began = time.perf_counter()
    await asyncio.gather(*(one() for _ in range(count)))
    sample.seconds = time.perf_counter() - began
    return sample


def watched(
    make: Callable[[], Coroutine[Any, Any, Sample]], look: Callable[[], float]
) -> tuple[Sample, float]:
    """Run one of the above; return with it the most that `look` saw, twice a second."""
    most = look()

    async def both() -> Sample:
        nonlocal most
        task = asyncio.create_task(make())
        while not task.done():
            await asyncio.wait([task], timeout=0.5)
            most = max(most, look())
        return task.result()

    return asyncio.run(both()), most


def run(make: Callable[[], Coroutine[Any, Any, Sample]]) -> Sample:
    """Run one of the above outside asyncio."""
    return asyncio.run(make())
