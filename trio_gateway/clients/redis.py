"""Redis through redis-py: one connection, one pipeline that all waiting calls share.

A crossing into asyncio costs far more than a command, so one task takes whatever is waiting,
sends it in one go, and hands the answers back. Commands are executed in the order in which
they were given. While there is no connection every command fails at once: the gateway fails
closed, and calls in flight go on without it.
"""

from __future__ import annotations

import hashlib
from collections import deque
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import redis.asyncio as aioredis
import structlog
import trio
from redis.exceptions import NoScriptError, RedisError, ResponseError

from trio_gateway.core.errors import StoreUnavailable

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from trio_gateway.clients.bridge import Bridge

log = structlog.get_logger()

REPLY_LIMIT = 3.0  # seconds for one round trip, whatever is in it
BATCH = 256  # commands in one round trip
WAITING = 20_000  # commands waiting; more is an outage in all but name
RETRY = 0.2  # seconds between attempts to connect


class Pending:
    """A command under way; see `Redis.answer`."""

    __slots__ = ("args", "done", "result")

    def __init__(self, args: tuple[Any, ...]) -> None:
        """Made by `Redis.send` only."""
        self.args = args
        self.done = trio.Event()
        self.result: Any = StoreUnavailable()


class Redis:
    """Commands and scripts. Raises StoreUnavailable for anything but a good answer."""

    def __init__(self, bridge: Bridge, url: str, scripts: Mapping[str, str]) -> None:
        """`scripts` maps names to Lua source; a bad URL raises ValueError."""
        self._bridge = bridge
        self._scripts = dict(scripts)
        self._digests = {
            name: hashlib.sha1(text.encode()).hexdigest()  # noqa: S324 - Redis names scripts so
            for name, text in scripts.items()
        }
        try:
            # RESP 2, whose answers are flat lists of bytes and ints, as the readers here expect.
            self._pool = aioredis.ConnectionPool.from_url(
                url, protocol=2, socket_timeout=REPLY_LIMIT, socket_connect_timeout=REPLY_LIMIT
            )
        except ValueError as error:
            raise ValueError("REDIS_URL is not a Redis address") from error
        self._waiting: deque[Pending] = deque()
        self._wake = trio.Event()
        self.run_id = ""  # the server's, while connected
        self.connected_at = 0.0  # trio time of the last connect

    @property
    def connected(self) -> bool:
        """Whether there is a connection, as far as this side knows."""
        return bool(self.run_id)

    async def script(self, name: str, keys: Sequence[str], args: Sequence[Any]) -> Any:
        """Run a registered script and return its raw answer (bytes, ints, lists)."""
        return await self.command("EVALSHA", self._digests[name], len(keys), *keys, *args)

    async def command(self, *args: Any) -> Any:
        """Run one command and return its raw answer."""
        return await self.answer(self.send(*args))

    def send_script(self, name: str, keys: Sequence[str], args: Sequence[Any]) -> Pending:
        """Enqueue a script without waiting; see `send`."""
        return self.send("EVALSHA", self._digests[name], len(keys), *keys, *args)

    def send(self, *args: Any) -> Pending:
        """Enqueue a command without waiting; pass the result to `answer`, or forget it."""
        pending = Pending(args)
        if not self.run_id or len(self._waiting) >= WAITING:
            pending.done.set()
        else:
            self._waiting.append(pending)
            self._wake.set()
        return pending

    async def answer(self, pending: Pending) -> Any:
        """Wait for the answer of a command sent; a cancel leaves the command under way."""
        await pending.done.wait()
        if isinstance(pending.result, Exception):
            raise StoreUnavailable from pending.result
        return pending.result

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Keep a connection and serve the commands; started once first connected."""
        announced = False
        down = False
        while True:
            connection = self._pool.make_connection()  # type: ignore[no-untyped-call]
            try:
                run_id = await self._bridge.run(self._connect, connection)
                self.run_id, self.connected_at = run_id, trio.current_time()
                log.info("redis_connected", again=announced)
                down = False
                if not announced:
                    announced = True
                    task_status.started()
                await self._serve(connection)
            except (RedisError, OSError, TimeoutError) as error:
                if not down:
                    log.warning("redis_lost", error=type(error).__name__)
                down = True
            finally:
                self.run_id = ""
                while self._waiting:
                    self._waiting.popleft().done.set()
                with trio.CancelScope(shield=True), suppress(RedisError, OSError, TimeoutError):
                    await self._bridge.run(connection.disconnect, True)  # noqa: FBT003
            await trio.sleep(RETRY)

    async def _connect(self, connection: Any) -> str:
        await connection.connect()
        await connection.send_command("INFO", "server")
        info = (await connection.read_response()).decode()
        for text in self._scripts.values():
            await connection.send_command("SCRIPT", "LOAD", text)
            await connection.read_response()
        fields = dict(line.split(":", 1) for line in info.splitlines() if ":" in line)
        return str(fields["run_id"])

    async def _serve(self, connection: Any) -> None:
        while True:
            while not self._waiting:
                self._wake = trio.Event()
                await self._wake.wait()
            batch = [self._waiting.popleft() for _ in range(min(BATCH, len(self._waiting)))]
            try:
                await self._bridge.run(self._exchange, connection, batch)
            finally:
                for pending in batch:
                    pending.done.set()

    async def _exchange(self, connection: Any, batch: list[Pending]) -> None:
        await self._round_trip(connection, batch)
        unknown = [pending for pending in batch if isinstance(pending.result, NoScriptError)]
        if unknown:  # SCRIPT FLUSH; these were not executed, so sending them again is safe
            await self._connect(connection)
            await self._round_trip(connection, unknown)
        for pending in batch:
            if isinstance(pending.result, ResponseError):
                log.error("redis_refused", error=str(pending.result)[:200])

    async def _round_trip(self, connection: Any, batch: list[Pending]) -> None:
        await connection.send_packed_command(connection.pack_commands([p.args for p in batch]))
        for pending in batch:
            try:
                pending.result = await connection.read_response()
            except ResponseError as error:
                pending.result = error
