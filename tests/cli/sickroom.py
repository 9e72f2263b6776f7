"""What the doctor's tests need: findings by name, things that play Ollama, and reports."""

import contextlib
import json
import os
import secrets
import socket
import socketserver
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit

import redis

from trio_gateway import __version__
from trio_gateway.services.workers import INDEX, PREFIX

LIFE = 600.0  # seconds that a report stays, however long the doctor takes


def found_by(cli, *args: str) -> dict[str, dict[str, str]]:
    """Run `doctor --json`, and return the findings by check; a backend's name is left out."""
    answer = cli("doctor", "--json", *args)
    findings = json.loads(answer.out)
    assert answer.code == int(any(each["state"] == "fail" for each in findings))
    for each in findings:
        assert set(each) == {"check", "state", "detail", "advice"}
        assert each["advice"] or each["state"] == "ok", each
    return {each["check"].split(" 127.0.0.1")[0]: each for each in findings}


def state_of(cli, check: str) -> tuple[str, str]:
    """Return the state and the detail of one check."""
    finding = found_by(cli)[check]
    return finding["state"], finding["detail"]


@contextlib.contextmanager
def http_server(status: int, fields: Any, host: str = "127.0.0.1") -> Iterator[int]:
    """Answer every GET with a status and a JSON body; lend the port."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            body = json.dumps(fields).encode()
            self.send_response(status)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_args):
            pass

    with ThreadingHTTPServer((host, 0), Handler) as server, _thread(server):
        yield server.server_address[1]


def ollama(version: str, host: str = "127.0.0.1") -> contextlib.AbstractContextManager[int]:
    """Play an Ollama of that version."""
    return http_server(200, {"version": version}, host)


@contextlib.contextmanager
def silence() -> Iterator[int]:
    """Take connections, and say nothing; lend the port."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


FAKE_WORKER = """
import json, sys, http.server
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        body = json.dumps(json.loads(sys.argv[2])).encode()
        self.send_response(int(sys.argv[1]))
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    def log_message(self, *_):
        pass
server = http.server.HTTPServer(("127.0.0.1", 0), Handler)
print(server.server_address[1], flush=True)
server.serve_forever()
"""


@contextlib.contextmanager
def fake_worker(status: int, fields: Any, name: str = "trio_gateway.worker") -> Iterator[int]:
    """Run a process that looks like a worker and answers so; lend its id."""
    words = [sys.executable, "-c", FAKE_WORKER, str(status), json.dumps(fields), name]
    with subprocess.Popen(words, stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline().strip().isdigit()
            yield process.pid
        finally:
            process.kill()


def report(redis_url: str, *, skew: float = 0, **fields: Any) -> None:
    """Leave a worker's report in Redis, as a worker whose clock is `skew` seconds ahead does."""
    whole = {
        "host": "gpu1",
        "slot": "w0",
        "pid": os.getpid(),
        "version": __version__,
        "reported_at": time.time() + skew,
        "missing": [],
        "backends": [],
    } | fields
    name = secrets.token_hex(8)
    with redis.Redis.from_url(redis_url) as memory:
        memory.zadd(INDEX, {name: whole["reported_at"]})
        memory.set(PREFIX + name, json.dumps(whole), px=int(LIFE * 1000))


def to_redis(url: str) -> Callable[[], socket.socket]:
    """Return how to connect to the Redis at an address; see `relay`."""
    parts = urlsplit(url)

    def connect() -> socket.socket:
        if parts.scheme != "unix":
            return socket.create_connection((parts.hostname or "", parts.port or 6379))
        there = socket.socket(socket.AF_UNIX)
        there.connect(parts.path)
        return there

    return connect


class _Relay(socketserver.ThreadingTCPServer):
    daemon_threads = True
    allow_reuse_address = True


@contextlib.contextmanager
def relay(connect: Any, back: Any) -> Iterator[int]:
    """Stand between a client and the socket that `connect()` gives; lend the port.

    `back(far)` yields what the client is to hear.
    """

    class Handler(socketserver.BaseRequestHandler):
        def handle(self):
            with connect() as far, contextlib.suppress(OSError):
                threading.Thread(target=self._forth, args=(far,), daemon=True).start()
                for piece in back(far):
                    self.request.sendall(piece)

        def _forth(self, far):
            with contextlib.suppress(OSError):
                while piece := self.request.recv(65_536):
                    if piece[4:8] == b"\x04\xd2\x16\x2f":
                        self.request.sendall(b"N")  # TLS, which is not spoken here
                    else:
                        far.sendall(piece)
                far.shutdown(socket.SHUT_RDWR)

    with _Relay(("127.0.0.1", 0), Handler) as server, _thread(server):
        yield server.server_address[1]


@contextlib.contextmanager
def _thread(server: socketserver.BaseServer) -> Iterator[None]:
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield
    finally:
        server.shutdown()
        thread.join()
