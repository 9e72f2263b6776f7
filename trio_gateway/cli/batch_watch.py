"""Following a batch: what changed, how fast it goes, how long it will take."""

from __future__ import annotations

import signal
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING

import trio

from trio_gateway.cli.batch_desk import row_of, tenant_of, verdict
from trio_gateway.cli.batch_progress import Glance, display
from trio_gateway.core.batches import TERMINAL
from trio_gateway.core.errors import StoreUnavailable
from trio_gateway.services.account_rows import storable

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from trio_gateway.cli.batch_desk import Row
    from trio_gateway.cli.batch_progress import Display
    from trio_gateway.cli.session import Desk
    from trio_gateway.core.batches import Batch

BETWEEN = 0.5  # seconds between two looks
SPAN = 60.0  # seconds over which the pace is taken
PATIENCE = 60.0  # seconds for PostgreSQL to come back


@dataclass(frozen=True)
class Ending:
    """How following came to its end; `line` says what is amiss with the batch, or how to go on."""

    batch: Batch
    line: str | None
    interrupted: bool = False


class Pace:
    """Lines a second over the last minute."""

    def __init__(self) -> None:
        """Nothing was seen yet."""
        self._seen: deque[tuple[float, int]] = deque()

    def note(self, at: float, done: int) -> float | None:
        """Return lines a second, None while there is nothing to tell from; `at` in seconds."""
        while len(self._seen) > 2 and at - self._seen[0][0] > SPAN:
            self._seen.popleft()
        self._seen.append((at, done))
        since, before = self._seen[0]
        return (done - before) / (at - since) if done > before and at > since else None


class Following:
    """One batch, looked at until it has ended; `batch` is as it was last seen."""

    def __init__(self, desk: Desk, batch: Batch, tenant: str, shown: Display) -> None:
        """`tenant` is the name of its tenant."""
        self.batch = batch
        self._desk = desk
        self._tenant = tenant
        self._shown = shown
        self._row: Row = {}
        self._pace = Pace()

    async def run(self) -> None:
        """Show the batch, again whenever it has changed, until it has ended."""
        self._show()
        while self.batch.status not in TERMINAL:
            await trio.sleep(BETWEEN)
            await self._look()
            self._show()

    async def _look(self) -> None:
        since = trio.current_time()
        while True:
            try:
                self.batch = await self._desk.batches.find_any(self.batch.id)
            except StoreUnavailable:
                if trio.current_time() - since > PATIENCE:
                    raise
                await trio.sleep(BETWEEN)
            else:
                return

    def _show(self) -> None:
        row = row_of(self.batch, self._tenant)
        rate = self._pace.note(trio.current_time(), self.batch.completed + self.batch.failed)
        self._shown.show(Glance(self.batch, row, rate, changed=row != self._row))
        self._row = row


async def watch(desk: Desk, batch_id: str, *, as_json: bool) -> Ending:
    """Follow a batch to its end and show it; raises NotFound.

    Ctrl-C ends the following alone, and leaves the batch as it is.
    """
    found = await desk.batches.find_any(storable(batch_id))
    tenant = await tenant_of(desk, found)
    with trio.open_signal_receiver(signal.SIGINT) as signals, display(as_json=as_json) as shown:
        following = Following(desk, found, tenant, shown)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_hear, signals, nursery.cancel_scope)
            await following.run()
            nursery.cancel_scope.cancel()
    found = following.batch
    if found.status in TERMINAL:
        return Ending(found, verdict(found))
    command = f"trio-gateway batch watch {found.id}"
    return Ending(found, f"the batch goes on; `{command}` follows it again", interrupted=True)


async def _hear(signals: AsyncIterator[int], scope: trio.CancelScope) -> None:
    await anext(signals)
    scope.cancel()
