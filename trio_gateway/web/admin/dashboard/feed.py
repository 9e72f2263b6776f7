"""Live numbers: one poll a second in this process, however many pages are open.

The poll begins with the first stream and ends with the last. A stream ends with its session,
which is looked at every other second, with the listener, after LONGEST, and with its client.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import orjson
import structlog
import trio

from trio_gateway.core.errors import GatewayError, Overloaded

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Collection

log = structlog.get_logger()

EVERY = 1.0  # seconds between two polls
LOOK = 2  # polls between two looks at the sessions
UNPROVEN = 15.0  # seconds that a stream outlives the last proof of its session
MOST = 50  # streams
MOST_OF_ONE = 10  # streams of one session
LONGEST = 600.0  # seconds; what a client leaves unread stays small, and browsers come back

Numbers = dict[str, Any]


class Watcher:
    """One stream; `over` once its session is."""

    __slots__ = ("over", "session_id")

    def __init__(self, session_id: str) -> None:
        """Made by Feed only."""
        self.session_id = session_id
        self.over = False


class Feed:
    """What is polled, and who listens.

    `poll` returns what JSON can hold, and never raises but for what is not foreseen; `alive`
    returns those of some sessions that are not over.
    """

    def __init__(
        self,
        poll: Callable[[], Awaitable[Numbers]],
        alive: Callable[[Collection[str]], Awaitable[Collection[str]]],
        leaving: trio.Event,
    ) -> None:
        """Begin with nobody listening."""
        self._poll = poll
        self._alive = alive
        self._leaving = leaving
        self._watchers: set[Watcher] = set()
        self._news = trio.Event()
        self._latest: bytes | None = None
        self._proven_at = trio.current_time()
        self._running = False

    def __len__(self) -> int:
        """How many streams there are."""
        return len(self._watchers)

    @property
    def polling(self) -> bool:
        """Whether the poll goes on."""
        return self._running

    def check_room(self, session_id: str) -> None:
        """Raise Overloaded where no stream may be added."""
        own = sum(watcher.session_id == session_id for watcher in self._watchers)
        if len(self._watchers) >= MOST or own >= MOST_OF_ONE or self._leaving.is_set():
            raise Overloaded("There are as many live pages as are allowed.", retry_after=10)

    async def stream(self, session_id: str, nursery: trio.Nursery) -> AsyncIterator[bytes]:
        """Yield events for one client until its time is over; `nursery` outlives the request."""
        until = trio.current_time() + LONGEST
        self.check_room(session_id)
        watcher = Watcher(session_id)
        self._watchers.add(watcher)
        try:
            if not self._running:
                self._running = True
                nursery.start_soon(self._run)
            yield b"retry: 2000\n\n"
            if self._latest is not None:
                yield self._latest
            while not watcher.over and not self._leaving.is_set():
                news = self._news
                with trio.move_on_at(until):
                    await news.wait()
                if trio.current_time() >= until or self._latest is None or watcher.over:
                    break
                yield self._latest
        finally:
            self._watchers.discard(watcher)

    async def _run(self) -> None:
        self._proven_at, polls = trio.current_time(), 0
        try:
            while self._watchers and not self._leaving.is_set():
                if polls % LOOK == 0:
                    await self._look()
                polls += 1
                self._latest = _event(await self._poll())
                self._tell()
                with trio.move_on_after(EVERY):
                    await self._leaving.wait()
        except Exception:  # streams end, and browsers begin new ones
            log.exception("live_numbers_failed")
        finally:
            self._running, self._latest = False, None
            for watcher in self._watchers:
                watcher.over = True
            self._tell()

    def _tell(self) -> None:
        told, self._news = self._news, trio.Event()
        told.set()

    async def _look(self) -> None:
        """End the streams whose sessions are over, and all if that cannot be told for long."""
        asked = {watcher.session_id for watcher in self._watchers}
        try:
            alive = await self._alive(asked)
            self._proven_at = trio.current_time()
        except GatewayError:
            alive = asked if trio.current_time() - self._proven_at < UNPROVEN else set()
        for watcher in self._watchers:
            if watcher.session_id in asked and watcher.session_id not in alive:
                watcher.over = True


def _event(numbers: Numbers) -> bytes:
    text = orjson.dumps({"at": f"{time.strftime('%H:%M:%S', time.gmtime())} UTC", **numbers})
    return b"data: " + text + b"\n\n"
