"""The servers that a bench compares, each a process of its own."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path

import trio

from trio_gateway import migrate
from trio_gateway.bootstrap import first_key
from trio_gateway.embedded import stores

ROOT = Path(__file__).resolve().parents[2]
TICKS = os.sysconf("SC_CLK_TCK")


class Target:
    """A running server: its port, and what it has cost."""

    def __init__(self, name: str, port: int, pid: int) -> None:
        self.name = name
        self.port = port
        self.pid = pid

    def cpu(self) -> float:
        """Seconds of CPU the process has used."""
        fields = Path(f"/proc/{self.pid}/stat").read_text().rsplit(") ", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / TICKS

    def rss(self) -> float:
        """Resident megabytes."""
        pages = int(Path(f"/proc/{self.pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE") / 1e6

    def peak(self) -> float:
        """The most resident megabytes since the last `forget_peak`."""
        status = Path(f"/proc/{self.pid}/status").read_text()
        return int(status.split("VmHWM:")[1].split()[0]) * 1024 / 1e6

    def forget_peak(self) -> None:
        """Count the peak from here on."""
        Path(f"/proc/{self.pid}/clear_refs").write_text("5")


def free_port() -> int:
    """Find a port that nobody listens on."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def wait_for(port: int, path: str = "/", seconds: float = 20) -> None:
    """Wait until the port answers HTTP."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        with contextlib.suppress(OSError):
            urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=2).close()
            return
        time.sleep(0.05)
    raise TimeoutError(f"nothing answers on port {port}")


def post(url: str, body: bytes) -> None:
    """POST to a control route."""
    urllib.request.urlopen(urllib.request.Request(url, body), timeout=5).close()


@contextlib.contextmanager
def process(
    command: list[str], env: Mapping[str, str] | None = None
) -> Iterator[subprocess.Popen[bytes]]:
    """Run a process until the block ends."""
    child = subprocess.Popen(command, cwd=ROOT, env=dict(os.environ) | dict(env or {}))
    try:
        yield child
    finally:
        child.send_signal(signal.SIGTERM)
        try:
            child.wait(15)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()


@contextlib.contextmanager
def installation() -> Iterator[tuple[dict[str, str], str]]:
    """Run private stores; yields the settings that lead to them, and a key."""
    with tempfile.TemporaryDirectory() as folder, stores.start(Path(folder) / "data") as pair:
        migrate.upgrade(pair.database_url)
        _, key = trio.run(first_key, pair.database_url)
        assert key is not None
        yield (
            {
                "DATABASE_URL": pair.database_url,
                "REDIS_URL": pair.redis_url,
                "TRIO_GATEWAY_BLOB_URL": (Path(folder) / "blobs").as_uri(),
            },
            key,
        )


@contextlib.contextmanager
def gateway(
    name: str, env: Mapping[str, str], upstream_url: str, **settings: object
) -> Iterator[Target]:
    """Run one worker; `settings` are TRIO_GATEWAY_*, in lower case."""
    named = {f"TRIO_GATEWAY_{key.upper()}": str(value) for key, value in settings.items()}
    fixed = {"OLLAMA_BASE_URL": upstream_url, "TRIO_GATEWAY_LOG_LEVEL": "warning"}
    with hypercorn(name, "trio_gateway.asgi:app", {**env, **fixed, **named}, "/readyz") as target:
        yield target


@contextlib.contextmanager
def simulator() -> Iterator[str]:
    """Run the simulated Ollama with its control routes; yields its URL."""
    command = [sys.executable, "-m", "trio_gateway.simulator", "--control"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        try:
            yield json.loads(child.stdout.readline())["url"]
        finally:
            child.terminate()


@contextlib.contextmanager
def upstream(tokens: int, gap: float) -> Iterator[Target]:
    """Run the model server that costs next to nothing."""
    port = free_port()
    command = [sys.executable, "-m", "tests.load.upstream", str(port), str(tokens), str(gap)]
    with process(command) as child:
        wait_for(port, "/api/version")
        yield Target("direct upstream", port, child.pid)


@contextlib.contextmanager
def hypercorn(
    name: str, application: str, env: Mapping[str, str], ready: str = "/"
) -> Iterator[Target]:
    """Run an ASGI application in one hypercorn process."""
    port = free_port()
    command = [sys.executable, "-m", "hypercorn", "--worker-class", "trio", "-w", "0"]
    # connections rest longer than any bench leaves one idle
    command += ["--keep-alive", "75", "--bind", f"127.0.0.1:{port}"]
    command += ["--log-level", "WARNING", application]
    with process(command, env) as child:
        wait_for(port, ready)
        yield Target(name, port, child.pid)
