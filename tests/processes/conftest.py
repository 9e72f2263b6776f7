"""Starts installations as processes of their own, and watches their children."""

from __future__ import annotations

import http.client
import json
import os
import select
import signal
import subprocess
import sys
import time
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from urllib.parse import urlsplit

import pytest

ROOT = Path(__file__).parents[2]
SECONDS = 90  # at most, for a machine with much else to do


class Installation:
    """A supervisor process; `told` is what it printed when it was ready."""

    def __init__(self, *arguments, **environ):
        kept = {k: v for k, v in os.environ.items() if not k.startswith("TRIO_GATEWAY_")}
        self.popen = subprocess.Popen(
            [sys.executable, "-m", "tests.processes.driver", *map(str, arguments)],
            cwd=ROOT,
            env={**kept, "PYTHONPATH": str(ROOT), **environ},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        self.out = Reader(self.popen.stdout)
        self.err = Reader(self.popen.stderr)
        self.told = {}
        self.heard = []

    def read_ready(self):
        line = self.out.line()
        if not line:
            raise AssertionError(self.err.rest())
        self.told = json.loads(line)
        return self

    def hear(self, event, what):
        """Return when the supervisor logs the event about that child."""
        while line := self.err.line():
            self.heard.append(line)
            if line.startswith('{"time"'):
                found = json.loads(line)
                if (found["event"], found["what"]) == (event, what):
                    return found
        raise AssertionError(self.heard)

    def get(self, path="/"):
        connection = self.connect()
        connection.request("GET", path)
        body = connection.getresponse().read().decode()
        connection.close()
        return body

    def admin(self):
        """Return what the admin listener was given."""
        parts = urlsplit(self.told["admin_url"])
        with closing(http.client.HTTPConnection(parts.hostname, parts.port, timeout=SECONDS)) as up:
            up.request("GET", "/")
            return json.loads(up.getresponse().read())

    def connect(self):
        parts = urlsplit(self.told["base_url"])
        return http.client.HTTPConnection(parts.hostname, parts.port, timeout=SECONDS)

    @contextmanager
    def stream(self):
        """Give a live streaming answer, its first bytes read."""
        connection = self.connect()
        connection.request("GET", "/stream")
        with closing(connection), connection.getresponse() as answer:
            assert answer.read(6) == b"begun "
            yield answer

    def children(self):
        """Return the process ids of all descendants, by what they run."""
        found: dict[str, list[int]] = {}
        todo = [(self.popen.pid, "supervisor")]
        while todo:
            pid, parent = todo.pop()
            for each, words in _children_of(pid):
                # what PostgreSQL forks bears its command line for an instant
                role = "other" if parent == "postgres" else _role(words)
                todo.append((each, role))
                found.setdefault(role, []).append(each)
        return found

    def descriptors(self):
        """Return the numbers of the supervisor's open descriptors."""
        return {int(each.name) for each in Path(f"/proc/{self.popen.pid}/fd").iterdir()}

    def stop(self, signum=signal.SIGTERM):
        self.popen.send_signal(signum)
        return self.finish()

    def finish(self):
        """Return the exit code, the rest of stdout and of stderr."""
        out, err = self.out.rest(), self.err.rest()
        return self.popen.wait(SECONDS), out, err

    def pids(self):
        """Return the process ids of all descendants."""
        return [pid for each in self.children().values() for pid in each]


def _children_of(pid):
    """Yield process id and command line of each child that does not end meanwhile."""
    with suppress(FileNotFoundError, ProcessLookupError):
        for each in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
            with suppress(FileNotFoundError, ProcessLookupError):
                words = Path(f"/proc/{each}/cmdline").read_bytes().decode().split("\0")
                yield int(each), words


def _role(words):
    if "trio_gateway.worker" in words:
        return "admin" if "tests.processes.tiny_admin:app" in words else "worker"
    if "trio_gateway.simulator" in words:
        return "simulator"
    program = Path(words[0].split(" ")[0]).name
    if program == "postgres" and "-D" in words:
        return "postgres"
    return "redis" if program == "redis-server" else "other"


class Reader:
    """Reads a pipe line by line, never waiting without a limit."""

    def __init__(self, stream):
        self.stream = stream
        self.buffer = b""

    def line(self):
        while b"\n" not in self.buffer and self._more():
            pass
        line, newline, self.buffer = self.buffer.partition(b"\n")
        return (line + newline).decode()

    def rest(self):
        while self._more():
            pass
        rest, self.buffer = self.buffer, b""
        return rest.decode()

    def _more(self):
        ready, _, _ = select.select([self.stream], [], [], SECONDS)
        assert ready, f"nothing more was said in time after {self.buffer!r}"
        piece = os.read(self.stream.fileno(), 65536)
        self.buffer += piece
        return bool(piece)


def wait_gone(pid, seconds=SECONDS):
    """Return when the process has ended; it need not be ours."""
    deadline = time.monotonic() + seconds
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        ready, _, _ = select.select([pidfd], [], [], deadline - time.monotonic())
    finally:
        os.close(pidfd)
    assert ready, f"process {pid} did not end"


@pytest.fixture
def launch():
    """Start installations; whatever is left of them is killed after the test."""
    started = []

    def start(*arguments, **environ):
        installation = Installation(*arguments, **environ)
        started.append(installation)
        return installation

    yield start
    for installation in started:
        if installation.popen.poll() is None:
            installation.popen.kill()
        installation.finish()
        installation.out.stream.close()
        installation.err.stream.close()


@pytest.fixture
def quickstart(launch, tmp_path):
    """Start a quickstart with the simulated Ollama on one data directory, and await it."""

    def start(*arguments, **environ):
        words = ["quickstart", "--simulate", "--data-dir", tmp_path / "installation"]
        return launch(*words, *arguments, **environ).read_ready()

    return start
