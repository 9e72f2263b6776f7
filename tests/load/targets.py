"""The servers that a bench compares, each a process of its own."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path

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
            urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=2).close()  # noqa: S310
            return
        time.sleep(0.05)
    raise TimeoutError(f"nothing answers on port {port}")


@contextlib.contextmanager
def process(command: list[str], env: Mapping[str, str] | None = None) -> Iterator[subprocess.Popen[bytes]]:
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
def upstream(tokens: int, gap: float) -> Iterator[Target]:
    """Run the model server that costs next to nothing."""
    port = free_port()
    command = [sys.executable, "-m", "tests.load.upstream", str(port), str(tokens), str(gap)]
    with process(command) as child:
        wait_for(port, "/api/version")
        yield Target("direct upstream", port, child.pid)


@contextlib.contextmanager
def hypercorn(name: str, application: str, env: Mapping[str, str], ready: str = "/") -> Iterator[Target]:
    """Run an ASGI application in one hypercorn process."""
    port = free_port()
    command = [sys.executable, "-m", "hypercorn", "--worker-class", "trio", "-w", "0"]
    command += ["--bind", f"127.0.0.1:{port}", "--log-level", "WARNING", application]
    with process(command, env) as child:
        wait_for(port, ready)
        yield Target(name, port, child.pid)
