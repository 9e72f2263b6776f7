"""Compare the lean transport with httpx's own: calls a second, CPU per call and per chunk.

Run it by hand: python tests/load/transport_bench.py [seconds]. The upstream is a subprocess
that writes prepared bytes. Trust the ratios, not the figures.
"""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import httpx
import trio

from trio_gateway.clients.transport import LeanTransport
from trio_gateway.clients.upstream import Timeouts, Upstream

LINE = b'{"model":"m","message":{"role":"assistant","content":"tok"},"done":false}\n'
HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/x-ndjson\r\n"
CHUNKED = HEAD + b"Transfer-Encoding: chunked\r\n\r\n"
CHUNK = b"%x\r\n%s\r\n" % (len(LINE), LINE)
WHOLE = HEAD + b"Content-Length: %d\r\n\r\n%s" % (len(LINE), LINE)
CONCURRENT, CHUNKS, PACE = 16, 64, 0.02


async def upstream_app(stream):
    """Answer /one whole, and /many as a paced stream of chunks."""
    async with stream:
        request = b""
        while received := await stream.receive_some():
            request += received
            if not request.endswith(b"\r\n\r\n{}"):
                continue
            whole, request = b" /one " in request, b""
            if whole:
                await stream.send_all(WHOLE)
                continue
            await stream.send_all(CHUNKED)
            for _ in range(CHUNKS):
                await stream.send_all(CHUNK)
                await trio.sleep(PACE)
            await stream.send_all(b"0\r\n\r\n")


async def serve():
    """Say the port on stdout, then serve until killed."""

    async def main(task_status=trio.TASK_STATUS_IGNORED):
        await trio.serve_tcp(upstream_app, 0, host="127.0.0.1", task_status=task_status)

    async with trio.open_nursery() as nursery:
        listeners = await nursery.start(main)
        print(listeners[0].socket.getsockname()[1], flush=True)


async def load(call, seconds):
    """Run `call` on 16 tasks for some seconds; return (calls, units, wall, CPU)."""
    calls = units = 0
    wall, cpu = time.perf_counter(), time.process_time()
    until = trio.current_time() + seconds

    async def worker():
        nonlocal calls, units
        while trio.current_time() < until:
            seen = await call()  # `+=` around an await would lose the others' counts
            units += seen
            calls += 1

    async with trio.open_nursery() as nursery:
        for _ in range(CONCURRENT):
            nursery.start_soon(worker)
    return calls, units, time.perf_counter() - wall, time.process_time() - cpu


def through_client(client, url):
    """Call as usual: httpx.AsyncClient and its pool."""

    async def call():
        async with client.stream("POST", url, content=b"{}") as response:
            return sum([1 async for _ in response.aiter_lines()])

    return call


def through_upstream(transport, base, path):
    """Call as the gateway does."""
    upstream = Upstream(transport, Timeouts())

    async def call():
        async with upstream.open(base, path, b"{}") as reply:
            return sum([len(lines) async for lines in reply])

    return call


async def main(base, seconds):
    """Measure both, print one table."""
    print(f"{'':34}{'calls/s':>9}{'CPU ms/call':>13}{'CPU us/chunk':>14}")
    rows = {}
    own = httpx.AsyncHTTPTransport()
    async with httpx.AsyncClient() as client, own, LeanTransport() as lean:
        ways = {
            "httpx.AsyncClient": lambda path: through_client(client, base + path),
            "Upstream on httpx's transport": lambda path: through_upstream(own, base, path),
            "Upstream on LeanTransport": lambda path: through_upstream(lean, base, path),
        }
        for name, way in ways.items():
            await load(way("/one"), 0.3)
            calls, _, wall, cpu = await load(way("/one"), seconds)
            _, units, _, stream_cpu = await load(way("/many"), seconds)
            rows[name] = calls / wall, cpu / calls * 1e3, stream_cpu / units * 1e6
            print("{:34}{:9.0f}{:13.2f}{:14.0f}".format(name, *rows[name]))
    plain, _, ours = rows.values()
    ratios = ours[0] / plain[0], plain[1] / ours[1], plain[2] / ours[2]
    print("{:34}{:8.1f}x{:12.1f}x{:13.1f}x".format("lean is better by", *ratios))


if __name__ == "__main__":
    if sys.argv[1:] == ["serve"]:
        trio.run(serve)
    else:
        command = [sys.executable, str(Path(__file__)), "serve"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
            assert server.stdout is not None
            port = int(server.stdout.readline())
            try:
                span = float(sys.argv[1]) if sys.argv[1:] else 3.0
                trio.run(main, f"http://127.0.0.1:{port}", span)
            finally:
                server.kill()
