"""Redis on a Trio socket: redis-py reads the address, hiredis speaks the protocol.

One connection serves every call. Commands go out in the order in which they were given, all
that are waiting in one write, and their answers come back in that order. A round trip through
redis.asyncio costs several times as much (tests/load/redis_bench.py), most of it the crossing
into asyncio, and admission makes two for every call.

While there is no connection every command fails at once: the gateway fails closed, and calls
in flight go on without it. Which server this is, by its run id, is asked at each connect, and
with sentinels in the address which one is the primary. A server that turns out to be a replica
is left at once.
"""

from __future__ import annotations

import hashlib
import re
from collections import deque
from typing import TYPE_CHECKING, Any

import hiredis
import structlog
import trio
from redis.asyncio.connection import parse_url

from trio_gateway.clients import sentinel, sentinel_address
from trio_gateway.clients.resp import (
    READ,
    ConnectionLost,
    converse,
    login,
    open_stream,
    refusal,
    run_id_of,
)
from trio_gateway.core.errors import StoreUnavailable

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from trio_gateway.clients.sentinel import Primary
    from trio_gateway.clients.sentinel_address import Sentinels

log = structlog.get_logger()

CONNECT_LIMIT = 3.0  # seconds to connect and greet
REPLY_LIMIT = 3.0  # seconds for the oldest unanswered command
WAITING = 20_000  # commands under way; more is an outage in all but name
RETRY = 0.2  # seconds between attempts to connect
FOLLOW = 2.0  # seconds between two looks at what the sentinels say
# what a replica refuses with; in a script before Redis 7 the code stands inside the text
_REPLICA = re.compile(r"^MASTERDOWN |(?:^| -)READONLY ")


class Demoted(Exception):
    """The server is a replica; never leaves this module."""


class Pending:
    """A command under way; see `Redis.answer`."""

    __slots__ = ("_waiter", "args", "done", "result", "sent_at")

    def __init__(self, args: tuple[Any, ...]) -> None:
        """Made by `Redis.send` only."""
        self.args = args
        self.done = False
        self.result: Any = None
        self.sent_at = trio.current_time()
        self._waiter: trio.lowlevel.Task | None = None

    def take(self, result: Any) -> None:
        """Keep the answer, or the error in place of one, and wake who waits for it."""
        self.result = result
        self.done = True
        if self._waiter is not None:
            trio.lowlevel.reschedule(self._waiter)
            self._waiter = None

    async def wait(self, *, cancellable: bool) -> None:
        """Wait for `take`; one task can. A shielded scope would cost more than the wait."""

        def abort(_: Any) -> trio.lowlevel.Abort:
            if not cancellable:
                return trio.lowlevel.Abort.FAILED
            self._waiter = None
            return trio.lowlevel.Abort.SUCCEEDED

        if not self.done:
            self._waiter = trio.lowlevel.current_task()
            await trio.lowlevel.wait_task_rescheduled(abort)


class Redis:
    """Commands and scripts. Raises StoreUnavailable for anything but a good answer."""

    def __init__(self, url: str, scripts: Mapping[str, str]) -> None:
        """`scripts` maps names to Lua source; a bad URL raises ValueError."""
        self._sentinels: Sentinels | None = None
        if sentinel_address.is_sentinel(url):
            self._sentinels = _sentinels(url)
            self._address: Mapping[str, Any] = self._sentinels.of_primary()
        else:
            self._address = _address(url)
        self._tls = url.startswith("rediss")
        self._primary: Primary | None = None  # as the sentinels had it at the last connect
        self._scripts = {_digest(text): text for text in scripts.values()}
        self._digests = {name: _digest(text) for name, text in scripts.items()}
        self._unsent: list[bytes] = []
        self._unanswered: deque[Pending] = deque()
        self._wake = trio.Event()
        # The server's, while connected; after a failover with its epoch, as a server that comes
        # back to be the primary has counters from before, though it is the same process.
        self.run_id = ""
        self.connected_at = 0.0  # trio time of the last connect
        self.trouble = ""  # why there is no connection, where the server or a sentinel told
        self.failed = trio.Event()  # once one was lost, or not to be had

    @property
    def connected(self) -> bool:
        """Whether there is a connection, as far as this side knows."""
        return bool(self.run_id)

    async def script(self, name: str, keys: Sequence[str], args: Sequence[Any]) -> Any:
        """Run a registered script and return its answer (bytes, ints, lists, None)."""
        return await self.answer(self.send_script(name, keys, args))

    async def command(self, *args: Any) -> Any:
        """Run one command and return its answer."""
        return await self.answer(self.send(*args))

    def send_script(self, name: str, keys: Sequence[str], args: Sequence[Any]) -> Pending:
        """Send a script without waiting; see `send`."""
        return self.send("EVALSHA", self._digests[name], len(keys), *keys, *args)

    def send(self, *args: Any) -> Pending:
        """Send a command without waiting; pass the result to `answer`, or forget it."""
        pending = Pending(args)
        if not self.run_id or len(self._unanswered) >= WAITING:
            pending.take(ConnectionLost())
        else:
            self._enqueue(pending)
        return pending

    async def answer(self, pending: Pending, *, cancellable: bool = True) -> Any:
        """Wait for the answer of a command sent; a cancel leaves the command under way.

        The wait is bounded, also where it is not `cancellable`: an overdue answer ends the
        connection, and with it every command.
        """
        await pending.wait(cancellable=cancellable)
        if isinstance(pending.result, Exception):
            raise StoreUnavailable from pending.result
        return pending.result

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Keep a connection and serve the commands; started once first connected."""
        announced = down = False
        while True:
            try:
                async with await self._connect() as stream:
                    log.info("redis_connected", again=announced)
                    down, self.trouble = False, ""
                    if not announced:
                        announced = True
                        task_status.started()
                    await self._serve(stream)
            except (ConnectionLost, trio.BrokenResourceError, OSError) as error:
                if not down:
                    log.warning("redis_lost", error=str(error) or type(error).__name__)
                down = True
                self.failed.set()
                self.trouble = str(error) if isinstance(error, ConnectionLost) else ""
            finally:
                self._disconnected()
            await trio.sleep(RETRY)

    def _enqueue(self, pending: Pending) -> None:
        self._unsent.append(hiredis.pack_command(pending.args))
        self._unanswered.append(pending)
        self._wake.set()

    def _disconnected(self) -> None:
        self.run_id = ""
        self._unsent.clear()
        while self._unanswered:
            self._unanswered.popleft().take(ConnectionLost())

    async def _connect(self) -> trio.abc.Stream:
        with trio.move_on_after(CONNECT_LIMIT):
            stream = await self._open()
            try:
                self.run_id = await self._greet(stream)
            except BaseException:
                await trio.aclose_forcefully(stream)
                raise
            self.connected_at = trio.current_time()
            return stream
        raise ConnectionLost("no answer in time")

    async def _open(self) -> trio.abc.Stream:
        if path := self._address.get("path"):
            return await trio.open_unix_socket(path)
        host, port = self._address.get("host", "localhost"), self._address.get("port", 6379)
        if self._sentinels is not None:
            self._primary = await sentinel.find(self._sentinels)
            host, port = self._primary.place.host, self._primary.place.port
        return await open_stream(host, port, tls=self._tls)

    async def _greet(self, stream: trio.abc.Stream) -> str:
        """Authenticate, choose the database, load the scripts, and ask which server this is."""
        commands = login(self._address.get("username"), self._address.get("password"))
        if database := self._address.get("db"):
            commands.append(("SELECT", database))
        commands += [("SCRIPT", "LOAD", text) for text in self._scripts.values()]
        if self._primary is not None:
            commands.append(("ROLE",))
        commands.append(("INFO", "server"))
        answers = await converse(stream, commands)
        if code := next(filter(None, map(refusal, answers)), ""):
            raise ConnectionLost(code)
        run_id = run_id_of(answers[-1])
        if self._primary is None:
            return run_id
        if answers[-2][0] != b"master":
            raise ConnectionLost("the server that the sentinels name is a replica")
        return f"{run_id}:{self._primary.epoch}" if self._primary.epoch else run_id

    async def _serve(self, stream: trio.abc.Stream) -> None:
        async with trio.open_nursery(strict_exception_groups=True) as nursery:
            nursery.start_soon(self._write, stream)
            nursery.start_soon(self._watch, nursery.cancel_scope)
            if self._sentinels is not None and self._primary is not None:
                nursery.start_soon(
                    self._follow, self._sentinels, self._primary, nursery.cancel_scope
                )
            await self._read_answers(stream)
            nursery.cancel_scope.cancel()
        raise ConnectionLost("the connection ended")

    async def _write(self, stream: trio.abc.Stream) -> None:
        while True:
            while not self._unsent:
                self._wake = trio.Event()
                await self._wake.wait()
            data = b"".join(self._unsent)
            self._unsent.clear()
            try:
                await stream.send_all(data)
            except trio.BrokenResourceError:
                return  # the reader finds the end as well

    async def _watch(self, scope: trio.CancelScope) -> None:
        """Give up a connection on which an answer is overdue."""
        while True:
            await trio.sleep(REPLY_LIMIT / 3)
            waiting = self._unanswered
            if waiting and trio.current_time() - waiting[0].sent_at > REPLY_LIMIT:
                scope.cancel()

    async def _follow(
        self, sentinels: Sentinels, primary: Primary, scope: trio.CancelScope
    ) -> None:
        """Leave a primary that was replaced, though it may not know it yet."""
        while True:
            await trio.sleep(FOLLOW)
            if await sentinel.replaced(sentinels, primary):
                scope.cancel()

    async def _read_answers(self, stream: trio.abc.Stream) -> None:
        reader = hiredis.Reader()
        while True:
            try:
                data = await stream.receive_some(READ)
            except trio.BrokenResourceError:
                return
            if not data:
                return
            try:
                reader.feed(bytes(data))
                while (answer := reader.gets()) is not False:
                    self._take(self._unanswered.popleft(), answer)
            except (hiredis.ProtocolError, IndexError):
                return  # this is no Redis, or it answers what nobody asked
            except Demoted:
                return  # whoever took its place may be found by the next connect

    def _take(self, pending: Pending, answer: Any) -> None:
        if isinstance(answer, hiredis.ReplyError):
            if str(answer).startswith("NOSCRIPT"):
                # SCRIPT FLUSH. It was not executed, so sending it again is safe, and loading
                # goes out before it.
                for text in self._scripts.values():
                    self._enqueue(Pending(("SCRIPT", "LOAD", text)))
                self._enqueue(pending)
                return
            log.error("redis_refused", error=str(answer)[:200])
            pending.take(answer)
            if _REPLICA.search(str(answer)):
                raise Demoted
        pending.take(answer)


def _address(url: str) -> Mapping[str, Any]:
    try:
        return parse_url(url)
    except ValueError as error:
        raise ValueError("REDIS_URL is not a Redis address") from error


def _sentinels(url: str) -> Sentinels:
    try:
        return sentinel_address.parse(url)
    except ValueError as error:
        raise ValueError(f"REDIS_URL {error}") from None


def _digest(text: str) -> str:
    return hashlib.sha1(text.encode()).hexdigest()  # noqa: S324 - Redis names scripts so
