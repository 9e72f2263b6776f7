"""A primary, a replica and three sentinels as real processes, any of which a test may end."""

from __future__ import annotations

import contextlib
import signal
import subprocess
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
import redis
import trio

from deploy.staging.programs import free_port
from trio_gateway.embedded.redis import find_server
from trio_gateway.embedded.store import StoreFailed

NAME = "books"
DOWN_AFTER = 500  # milliseconds without an answer
FAILOVER_TIMEOUT = 3000  # milliseconds
FAILOVER = 60.0  # seconds, at most, until another takes over, with others building beside
TICK = 0.02
GREETED = 60.0  # seconds for everyone to have met everyone


class Ensemble:
    """`data` are the ports of the two servers, `watchers` those of the three sentinels."""

    def __init__(self, folder: Path, password: str = "", sentinel_password: str = "") -> None:
        self.folder = folder
        self.password = password
        self.sentinel_password = sentinel_password
        self.data = [free_port(), free_port()]
        self.watchers = [free_port() for _ in range(3)]
        self._running: dict[int, subprocess.Popen[bytes]] = {}

    @property
    def url(self) -> str:
        """What REDIS_URL would be."""
        return self.address()

    def address(self, name: str = NAME, watchers: list[int] | None = None) -> str:
        """Return an address by these sentinels."""
        hosts = ",".join(f"127.0.0.1:{port}" for port in watchers or self.watchers)
        credentials = f":{quote(self.password, '')}@" if self.password else ""
        option = f"?sentinel_password={quote(self.sentinel_password, '')}"
        option = option if self.sentinel_password else ""
        return f"redis+sentinel://{credentials}{hosts}/{name}/0{option}"

    async def start(self) -> None:
        """Start everyone, the first server as the primary; return once all have met all."""
        first, second = self.data
        self.serve(first)
        self.serve(second, replica_of=first)
        # a sentinel looks again only ten seconds after its first look
        await until(lambda: self.follows(second), GREETED)
        for port in self.watchers:
            self.watch(port, first)
        await until(lambda: all(map(self.complete, self.watchers)), GREETED)

    def serve(self, port: int, replica_of: int | None = None) -> None:
        """Start a server on what data it has."""
        lines = [
            "appendonly yes",
            'save ""',
            "maxmemory-policy noeviction",
            "repl-diskless-sync yes",
            "repl-diskless-sync-delay 0",
        ]
        if self.password:
            lines += [f"requirepass {self.password}", f"masterauth {self.password}"]
        if replica_of:
            lines.append(f"replicaof 127.0.0.1 {replica_of}")
        self._run(port, lines)

    def watch(self, port: int, primary: int) -> None:
        """Start a sentinel that has seen nothing yet."""
        lines = [
            f"sentinel monitor {NAME} 127.0.0.1 {primary} 2",
            f"sentinel down-after-milliseconds {NAME} {DOWN_AFTER}",
            f"sentinel failover-timeout {NAME} {FAILOVER_TIMEOUT}",
        ]
        if self.password:
            lines.append(f"sentinel auth-pass {NAME} {self.password}")
        if self.sentinel_password:
            lines.append(f"requirepass {self.sentinel_password}")
        self._run(port, lines, "--sentinel")

    def _run(self, port: int, lines: list[str], *words: str) -> None:
        folder = self.folder / str(port)
        folder.mkdir(exist_ok=True)
        own = [f"port {port}", "bind 127.0.0.1", f"dir {folder}", f"logfile {folder}/log"]
        config = folder / "conf"
        config.write_text("\n".join([*own, *lines, ""]))
        self._running[port] = subprocess.Popen([find_server(), str(config), *words])

    def kill(self, port: int) -> None:
        """Kill one at once, as a crash would."""
        process = self._running.pop(port)
        process.kill()
        process.wait(10)

    def freeze(self, port: int) -> None:
        """Stop one where it stands; its connections stay."""
        self._running[port].send_signal(signal.SIGSTOP)

    def thaw(self, port: int) -> None:
        """Let it go on."""
        self._running[port].send_signal(signal.SIGCONT)

    def end(self) -> None:
        """End whoever is left."""
        for port in list(self._running):
            self.kill(port)

    def client(self, port: int) -> Any:
        """Return a client of a server or a sentinel."""
        password = self.password if port in self.data else self.sentinel_password
        return redis.Redis(port=port, password=password or None, socket_timeout=2, protocol=2)

    def ask(self, port: int, *command: Any) -> Any:
        """Run one command on a server or a sentinel."""
        with self.client(port) as client:
            return client.execute_command(*command)

    def primary(self, watcher: int | None = None) -> int:
        """Return the primary's port, as a sentinel has it."""
        command = ("SENTINEL", "GET-MASTER-ADDR-BY-NAME", NAME)
        return int(self.ask(watcher or self.watchers[0], *command)[1])

    def follows(self, port: int) -> bool:
        """Whether a server is a replica that has all that its primary has."""
        with contextlib.suppress(redis.RedisError):
            role = self.ask(port, "ROLE")
            return bool(role[0] == b"slave" and role[3] == b"connected")
        return False

    def complete(self, watcher: int) -> bool:
        """Whether a sentinel knows of the other two, and of a replica in good order."""
        with contextlib.suppress(redis.RedisError):
            with self.client(watcher) as client:
                master, replicas = client.sentinel_master(NAME), client.sentinel_slaves(NAME)
            linked = [each for each in replicas if each.get("master-link-status") == "ok"]
            up = [each for each in linked if not each["is_sdown"]]
            return master["num-other-sentinels"] == 2 and bool(up)
        return False

    async def replaced(self, port: int) -> int:
        """Wait until every sentinel that lives names another primary; return its port."""
        living = [watcher for watcher in self.watchers if watcher in self._running]
        await until(lambda: port not in {self.primary(each) for each in living}, FAILOVER)
        return self.primary(living[0])


async def until(condition: Callable[[], Any], limit: float = FAILOVER) -> None:
    """Wait until the condition holds."""
    with trio.fail_after(limit):
        # other processes cannot set an event of ours
        while not condition():  # noqa: ASYNC110
            await trio.sleep(TICK)


@contextlib.asynccontextmanager
async def ensemble(folder: Path, **passwords: str) -> AsyncIterator[Ensemble]:
    """Run them until the block ends; without a redis-server the test is skipped."""
    try:
        find_server()
    except StoreFailed as error:
        pytest.skip(f"MISSING redis-server: failover by Sentinel is not tested ({error})")
    running = Ensemble(folder, **passwords)
    try:
        await running.start()
        yield running
    finally:
        running.end()
