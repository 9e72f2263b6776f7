"""Installations as real processes: two workers by `serve` or by stock hypercorn, and an Ollama."""

from __future__ import annotations

import contextlib
import json
import os
import re
import select
import signal
import subprocess
import sys
import sysconfig
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import trio

ROOT = Path(__file__).parents[2]
MODELS = (
    "llama3.2:latest",
    "qwen3:8b",
    "nomic-embed-text:latest",
    "llava:7b",
    "team/secret-model:7b",
)
START_LIMIT = 60.0  # seconds; several builds may share two cores
STOP_LIMIT = 60.0
TICK = 0.02
HOW = ("serve", "hypercorn")


def script(name: str) -> str:
    """Return where an installed command is."""
    return str(Path(sysconfig.get_path("scripts")) / name)


class Program:
    """A child process of the test, its stderr in a file that is shown if the test fails."""

    def __init__(self, words: Sequence[str], log: Path, **environ: str) -> None:
        kept = {k: v for k, v in os.environ.items() if not k.startswith("TRIO_GATEWAY_")}
        for name in ("DATABASE_URL", "REDIS_URL", "OLLAMA_BASE_URL"):
            kept.pop(name, None)
        self.log = log
        with log.open("ab") as errors:
            self.popen = subprocess.Popen(
                words,
                cwd=ROOT,
                env={**kept, **environ},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=errors,
            )
        self.seen: dict[int, int] = {}  # descendants by process id, each with a pidfd

    @property
    def said(self) -> str:
        """Everything on stderr so far."""
        return self.log.read_text(errors="replace")

    def line(self) -> Any:
        """Return the next line of stdout, as JSON."""
        assert self.popen.stdout is not None
        ready, _, _ = select.select([self.popen.stdout], [], [], START_LIMIT)
        text = self.popen.stdout.readline() if ready else b""
        assert text, f"not ready; stderr:\n{self.said}"
        return json.loads(text)

    def descendants(self) -> list[int]:
        """Return the process ids of all children and theirs."""
        found: list[int] = []
        todo = [self.popen.pid]
        while todo:
            pid = todo.pop()
            with contextlib.suppress(OSError):
                children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
                todo += map(int, children)
                found += map(int, children)
        for pid in found:
            if pid not in self.seen or _gone(self.seen[pid]):
                with contextlib.suppress(ProcessLookupError):
                    self.seen[pid] = os.pidfd_open(pid)
        return found

    def left(self) -> list[int]:
        """Return the descendants ever seen that are still alive."""
        return [pid for pid, pidfd in self.seen.items() if not _gone(pidfd)]

    def send(self, signum: int) -> None:
        """Send a signal to the parent process."""
        self.popen.send_signal(signum)

    async def ended(self, limit: float = STOP_LIMIT) -> int:
        """Return the exit code of the parent process."""
        await until(lambda: self.popen.poll() is not None, limit)
        return self.popen.returncode

    def destroy(self) -> None:
        """End whatever is left of it."""
        self.descendants()
        if self.popen.poll() is None:
            self.popen.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.popen.wait(10)
        self.descendants()
        for pidfd in self.seen.values():
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(pidfd, signal.SIGKILL)
            os.close(pidfd)
        self.seen.clear()
        if self.popen.poll() is None:
            self.popen.kill()
        self.popen.wait(10)
        assert self.popen.stdout is not None
        self.popen.stdout.close()


def _gone(pidfd: int) -> bool:
    return bool(select.select([pidfd], [], [], 0)[0])


class Fleet(Program):
    """A gateway of two workers; `base_url` is where callers connect."""

    base_url: str
    admin_url: str  # by `serve` only
    database_url: str
    redis_url: str

    @property
    def port(self) -> int:
        """The public port."""
        return urlsplit(self.base_url).port or 0

    def workers(self) -> list[int]:
        """Return the process ids of the workers that are alive."""
        return [pid for pid in self.descendants() if _is_worker(commandline(pid))]

    def loads(self) -> dict[int, int]:
        """Return how many callers' connections each worker has accepted."""
        inodes = _inodes_at(self.port)
        return {pid: len(_sockets(pid) & inodes) for pid in self.workers()}


class Ollama(Program):
    """A simulated Ollama; scripts and observations go over HTTP."""

    url: str

    async def play(self, *scripts: dict[str, Any]) -> None:
        """Replace its scripts."""
        async with httpx.AsyncClient(base_url=self.url, timeout=40) as client:
            (await client.post("/_sim/script", json=list(scripts))).raise_for_status()

    async def state(self, **wanted: Any) -> Any:
        """Return what it has seen; `open=N` and `started=N` wait for that."""
        async with httpx.AsyncClient(base_url=self.url, timeout=40) as client:
            return (await client.get("/_sim/state", params=wanted)).json()

    async def forget(self) -> None:
        """Begin a new page."""
        async with httpx.AsyncClient(base_url=self.url, timeout=40) as client:
            await client.delete("/_sim/script")
            await client.delete("/_sim/state")


@contextlib.contextmanager
def ollama(folder: Path, models: Sequence[str] = MODELS) -> Iterator[Ollama]:
    """Run a simulated Ollama until the block ends."""
    words = [
        sys.executable,
        "-m",
        "trio_gateway.simulator",
        "--control",
        "--models",
        ",".join(models),
    ]
    running = Ollama(words, folder / "ollama.log")
    try:
        running.url = running.line()["url"]
        yield running
    finally:
        running.destroy()


@contextlib.contextmanager
def fleet(
    how: str, folder: Path, stores: Sequence[str], ollama_url: str, **settings: Any
) -> Iterator[Fleet]:
    """Run two workers until the block ends, or `workers` where the settings name that.

    `stores` are the addresses of PostgreSQL and Redis; settings are names in lower case.
    """
    database_url, redis_url = stores
    workers = str(settings.pop("workers", 2))
    environ = {
        "DATABASE_URL": database_url,
        "REDIS_URL": redis_url,
        "OLLAMA_BASE_URL": ollama_url,
        "TRIO_GATEWAY_BLOB_URL": (folder / "blobs").as_uri(),
    } | {f"TRIO_GATEWAY_{name.upper()}": str(value) for name, value in settings.items()}
    log = folder / f"{how}.log"
    earlier = len(log.read_text()) if log.exists() else 0
    if how == "serve":
        words = [script("trio-gateway"), "serve", "--json", "--workers", workers]
        words += ["--bind", "127.0.0.1:0", "--admin-bind", "127.0.0.1:0"]
    else:
        graceful = str(settings.get("drain_timeout", 30))
        words = [script("hypercorn"), "--worker-class", "trio", "-w", workers]
        words += ["--bind", "127.0.0.1:0", "--graceful-timeout", graceful, "trio_gateway.asgi:app"]
    running = Fleet(words, log, **environ)
    running.database_url, running.redis_url = database_url, redis_url
    try:
        if how == "serve":
            announced = running.line()
            running.base_url, running.admin_url = announced["base_url"], announced["admin_url"]
        else:
            running.base_url = _announced(running, earlier, int(workers))
        yield running
    except BaseException:
        sys.stderr.write(f"--- stderr of {how}:\n{running.said[-6000:]}\n---\n")
        raise
    finally:
        running.destroy()


def _announced(running: Fleet, earlier: int, workers: int) -> str:
    deadline = time.monotonic() + START_LIMIT
    while True:
        found = re.findall(r"Running on (http://\S+)", running.said[earlier:])
        if len(found) >= workers:
            running.descendants()
            return str(found[0])
        assert running.popen.poll() is None, running.said
        assert time.monotonic() < deadline, running.said
        time.sleep(TICK)


def commandline(pid: int) -> list[str]:
    """Return the words of a process, none if it is gone."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes().decode().split("\0")
    return []


def _is_worker(words: list[str]) -> bool:
    if "trio_gateway.worker" in words:
        return "trio_gateway.admin_asgi:app" not in words
    return any("spawn_main" in word for word in words)


def _inodes_at(port: int) -> set[str]:
    """Return the inodes of the serving ends of a port's established connections."""
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return {row[9] for row in rows if row[1].endswith(f":{port:04X}") and row[3] == "01"}


def _sockets(pid: int) -> set[str]:
    found = set()
    with contextlib.suppress(OSError):
        for link in Path(f"/proc/{pid}/fd").iterdir():
            with contextlib.suppress(OSError):
                found.add(str(link.readlink()).removeprefix("socket:[").removesuffix("]"))
    return found


async def until(condition: Callable[[], Any], limit: float = STOP_LIMIT) -> None:
    """Wait until the condition holds."""
    with trio.fail_after(limit):
        # other processes cannot set an event of ours
        while not condition():  # noqa: ASYNC110
            await trio.sleep(TICK)
