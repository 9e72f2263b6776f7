"""The group commit of results: their texts in one blob, then their lines in one transaction."""

from __future__ import annotations

import secrets
from typing import TYPE_CHECKING

import structlog
import trio

from trio_gateway.core.errors import StoreUnavailable
from trio_gateway.services.batches.lines import joined

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from trio_gateway.clients.blobs import Blobs
    from trio_gateway.services.batches.lines import Lines, Result

log = structlog.get_logger()

GROUP = 200  # results in one transaction
GROUP_BYTES = 1024 * 1024
LINGER = 0.05  # seconds to wait for company
WAITING = 64  # results that may wait while a group is being stored
RETRY = 0.5  # seconds between attempts while a store is away


class Committer:
    """Takes results, and stores them for ever."""

    def __init__(
        self, lines: Lines, blobs: Blobs, stored: Callable[[Sequence[Result]], None]
    ) -> None:
        """Tell `stored` of each result that is stored, or found to be another worker's."""
        self._lines = lines
        self._blobs = blobs
        self._stored = stored
        self.send, self._receive = trio.open_memory_channel["Result"](WAITING)

    async def run(self) -> None:
        """Store group after group, until `send` is closed and nothing is left."""
        async with self._receive:
            while group := await self._gathered():
                for batch_id in dict.fromkeys(result.claim.batch_id for result in group):
                    await self._store(
                        batch_id, [each for each in group if each.claim.batch_id == batch_id]
                    )

    async def _gathered(self) -> list[Result]:
        """Wait for a result, and a little longer for others; none at the end."""
        group: list[Result] = []
        size = 0
        linger = trio.CancelScope()
        with linger:
            async for result in self._receive:
                group.append(result)
                size += len(result.text)
                if len(group) >= GROUP or size >= GROUP_BYTES:
                    break
                if len(group) == 1:
                    linger.deadline = trio.current_time() + LINGER
        return group

    async def _store(self, batch_id: str, results: Sequence[Result]) -> None:
        path = f"results/{batch_id}/{secrets.token_hex(12)}"
        text = joined(results)
        while True:
            try:
                await self._blobs.put(path, text)
                counted = await self._lines.record(batch_id, path, results)
                break
            except StoreUnavailable:
                log.warning("batch_results_wait", batch_id=batch_id, lines=len(results))
                await trio.sleep(RETRY)
        if counted < len(results):
            log.warning("batch_results_late", batch_id=batch_id, lines=len(results) - counted)
        self._stored(results)
