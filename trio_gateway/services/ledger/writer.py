"""The group commit: calls that end together share one transaction and one round of settles."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING

import structlog
import trio

from trio_gateway.core.errors import StoreUnavailable

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from trio_gateway.core.domain import LedgerRow
    from trio_gateway.services.ledger.ledger import Ledger

log = structlog.get_logger()

GROUP = 200  # rows in one transaction
LINGER_EACH = 0.004  # seconds to wait for company, for each other call under way
LINGER_MOST = 0.025
RETRY = 0.5  # seconds between attempts while PostgreSQL is away


@dataclass(frozen=True, slots=True)
class _Taken:
    row: LedgerRow
    done: trio.Event
    since: float  # trio time


class LedgerWriter:
    """Takes rows, stores them, then settles their holds; whatever fails is tried again.

    The queue is bounded by the calls in flight: each has one row, and each holds a hold.
    """

    def __init__(
        self,
        ledger: Ledger,
        settle: Callable[[Sequence[LedgerRow]], Awaitable[None]],
        others: Callable[[], int],
    ) -> None:
        """`settle` gets the stored rows; `others` counts the live calls that have no row yet."""
        self._ledger = ledger
        self._settle = settle
        self._others = others
        self._waiting: deque[_Taken] = deque()
        self._group: list[_Taken] = []  # being stored and settled
        self._wake = trio.Event()
        self._idle = trio.Event()
        self._idle.set()

    def submit(self, row: LedgerRow) -> trio.Event:
        """Take a row; the event is set once it is stored and settled."""
        done = trio.Event()
        self._waiting.append(_Taken(row, done, trio.current_time()))
        self._idle = trio.Event() if self._idle.is_set() else self._idle
        self._wake.set()
        return done

    @property
    def backlog(self) -> int:
        """How many rows are not stored and settled."""
        return len(self._group) + len(self._waiting)

    @property
    def waited(self) -> float:
        """For how many seconds the oldest of them has been waiting; 0 where there is none."""
        oldest = next(iter(self._group or self._waiting), None)
        return 0.0 if oldest is None else trio.current_time() - oldest.since

    async def drained(self) -> None:
        """Wait until every row taken so far is stored and settled."""
        await self._idle.wait()

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Store and settle for ever."""
        task_status.started()
        while True:
            if not self._waiting:
                self._idle.set()
                self._wake = trio.Event()
                await self._wake.wait()
            if len(self._waiting) < GROUP and (others := self._others()) > 0:
                await trio.sleep(min(LINGER_MOST, LINGER_EACH * others))
            self._group = [self._waiting.popleft() for _ in range(min(GROUP, len(self._waiting)))]
            stored = await self._store([taken.row for taken in self._group])
            await self._settle(stored)
            for taken in self._group:
                taken.done.set()
            self._group = []

    async def _store(self, rows: list[LedgerRow]) -> list[LedgerRow]:
        while True:
            try:
                return await self._ledger.write(rows)
            except StoreUnavailable:
                log.warning("ledger_waits", rows=len(rows))
            except Exception:
                # What nobody foresaw is no reason to forget a charge: a later release, or whoever
                # reads this, may mend it, and until then the holds carry the rows.
                log.exception("ledger_write_broke", rows=len(rows))
            await trio.sleep(RETRY)
