"""The end of a batch: its files, in the order of its lines, and the transaction that shows them."""

from __future__ import annotations

import secrets
from collections import OrderedDict
from contextlib import AsyncExitStack, suppress
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import structlog
import trio

from trio_gateway.clients.blobs import BlobMissing
from trio_gateway.core.batches import Status, StoredFile
from trio_gateway.core.errors import StoreUnavailable
from trio_gateway.dialects.batch_output import CANCELLED, EXPIRED, FAILED, unrun_line
from trio_gateway.services.batches.ending import Ended, FencedOutError, end
from trio_gateway.services.files.rows import insert_file

if TYPE_CHECKING:
    from collections.abc import Callable
    from uuid import UUID

    from trio_gateway.clients.blobs import Blobs, Writer
    from trio_gateway.clients.postgres import Connection, Postgres
    from trio_gateway.core.batches import Batch
    from trio_gateway.services.batches.ending import EndedLine, Endings

log = structlog.get_logger()

KEPT = timedelta(days=30)  # for output files, where the batch does not say
CACHE_BYTES = 32 * 1024 * 1024  # of results read ahead
FLUSH_BYTES = 1024 * 1024
ENDS = {
    Status.FINALIZING: Status.COMPLETED,
    Status.CANCELLING: Status.CANCELLED,
    Status.IN_PROGRESS: Status.EXPIRED,
    Status.VALIDATING: Status.EXPIRED,
}
UNRUN = {Status.CANCELLED: CANCELLED, Status.EXPIRED: EXPIRED, Status.COMPLETED: FAILED}


class Finisher:
    """Ends the batches that have nothing left to run."""

    def __init__(self, postgres: Postgres, blobs: Blobs, endings: Endings, lease: float) -> None:
        """`lease` is in seconds, as `endings` has it."""
        # Told the status of each batch that was ended here.
        self.ended: Callable[[str], object] = lambda _: None
        self._postgres = postgres
        self._blobs = blobs
        self._endings = endings
        self._lease = lease

    async def once(self) -> bool:
        """End one batch; False if there is none. May raise StoreUnavailable."""
        claimed = await self._endings.claim()
        if claimed is None:
            return False
        found, token = claimed
        try:
            with trio.CancelScope() as held:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._hold, found, token, held)
                    await self._end(found, token)
                    nursery.cancel_scope.cancel()
        except* FencedOutError:
            log.info("batch_end_left_to_another", batch_id=found.id)
        return True

    async def _hold(self, found: Batch, token: UUID, held: trio.CancelScope) -> None:
        """Keep the lease; once it is lost, stop."""
        while True:
            await trio.sleep(self._lease / 3)
            with suppress(StoreUnavailable):  # the next attempt may still be in time
                if not await self._endings.renew(found.id, token):
                    held.cancel()

    async def _end(self, found: Batch, token: UUID) -> None:
        status = ENDS[found.status]
        output, errors = _OutFile(self._blobs, found), _OutFile(self._blobs, found)
        await self._endings.intend([output.path, errors.path])
        results = _Results(self._blobs)
        async with AsyncExitStack() as stack:
            after = 0
            while page := await self._endings.page(found.id, after):
                for line in page:
                    text = await results.read(line)
                    if text is None:
                        await errors.add(stack, _unrun(found, line, status))
                    else:
                        file = output if line.state == "succeeded" else errors
                        await file.add(stack, text)
                after = page[-1].number
            await output.flush(stack)
            await errors.flush(stack)
        ended = Ended(status, output.file_id, errors.file_id, output.lines, errors.lines)
        files = [
            file.stored(name)
            for file, name in ((output, "output"), (errors, "error"))
            if file.lines
        ]
        await self._postgres.transact(_finish, found, token, ended, files)
        self.ended(status)
        log.info(
            "batch_ended",
            batch_id=found.id,
            status=status,
            completed=output.lines,
            failed=errors.lines,
        )


def _unrun(found: Batch, line: EndedLine, status: Status) -> bytes:
    """Say of a line without a result that it was given up, or why it was not run."""
    reason = UNRUN[status] if line.state == "abandoned" else FAILED
    return unrun_line(line.custom_id, f"{found.id}-{line.number}", reason)


async def _finish(
    connection: Connection, found: Batch, token: UUID, ended: Ended, files: list[StoredFile]
) -> None:
    await end(connection, found, token, ended)
    for file in files:
        if not await insert_file(connection, file):
            raise FencedOutError


class _OutFile:
    """One file in the making; nothing is written before the first line."""

    def __init__(self, blobs: Blobs, found: Batch) -> None:
        self._id = f"file-{secrets.token_hex(12)}"
        self.path = f"files/{found.tenant_id}/{self._id}"
        self.lines = 0
        self._blobs = blobs
        self._found = found
        self._pieces: list[bytes] = []
        self._waiting = 0
        self._size = 0
        self._writer: Writer | None = None

    @property
    def file_id(self) -> str | None:
        return self._id if self.lines else None

    async def add(self, stack: AsyncExitStack, line: bytes) -> None:
        self._pieces += (line, b"\n")
        self.lines += 1
        self._waiting += len(line) + 1
        if self._waiting >= FLUSH_BYTES:
            await self.flush(stack)

    async def flush(self, stack: AsyncExitStack) -> None:
        if not self._pieces:
            return
        if self._writer is None:
            self._writer = await stack.enter_async_context(self._blobs.writer(self.path))
        await self._writer.write(b"".join(self._pieces))
        self._size += self._waiting
        self._pieces, self._waiting = [], 0

    def stored(self, name: str) -> StoredFile:
        now, found = datetime.now(UTC), self._found
        kept = found.output_expires_after
        return StoredFile(
            id=self._id,
            tenant_id=found.tenant_id,
            purpose="batch_output",
            filename=f"{found.id}_{name}.jsonl",
            bytes=self._size,
            blob=self.path,
            created_at=now,
            expires_at=now + (KEPT if kept is None else timedelta(seconds=kept)),
        )


class _Results:
    """Reads results, whole blobs at a time: neighbors were mostly stored together."""

    def __init__(self, blobs: Blobs) -> None:
        self._blobs = blobs
        self._cached: OrderedDict[str, bytes] = OrderedDict()
        self._size = 0

    async def read(self, line: EndedLine) -> bytes | None:
        """Return a line's result; None where there is none, or its blob is gone."""
        if line.blob is None:
            return None
        blob = self._cached.get(line.blob)
        if blob is None:
            try:
                blob = await self._fetch(line.blob)
            except BlobMissing:
                log.error("batch_result_missing", blob=line.blob)  # noqa: TRY400 - it says it all
                return None
        self._cached.move_to_end(line.blob)
        return blob[line.start : line.start + line.length]

    async def _fetch(self, path: str) -> bytes:
        pieces = []
        async with self._blobs.reader(path) as reader:
            while piece := await reader.read():
                pieces.append(piece)
        blob = self._cached[path] = b"".join(pieces)
        self._size += len(blob)
        while self._size > CACHE_BYTES and len(self._cached) > 1:
            self._size -= len(self._cached.popitem(last=False)[1])
        return blob
