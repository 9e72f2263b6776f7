"""Validation: the input of a batch is read once, and its lines are queued or its faults listed.

It runs in the loop that serves live calls, so it lets others go first every few milliseconds.
Should its worker die, another begins anew.
"""

from __future__ import annotations

import time
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING
from uuid import uuid4

import structlog
import trio

from trio_gateway.clients.blobs import BlobMissing
from trio_gateway.core.batches import PURPOSE
from trio_gateway.core.errors import ModelNotFound, StoreUnavailable, Unauthenticated
from trio_gateway.core.models import InvalidModelName, canonical
from trio_gateway.dialects.batch_input import (
    Inspection,
    Rules,
    broken,
    cannot_find,
    not_for_batches,
)
from trio_gateway.dialects.batch_lines import LineSplitter

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from uuid import UUID

    from trio_gateway.clients.blobs import Blobs
    from trio_gateway.core.batches import Batch, Line, LineError
    from trio_gateway.core.domain import Principal
    from trio_gateway.dialects.batch_lines import RawLine
    from trio_gateway.pipeline.gate import Gate
    from trio_gateway.services.batches.intake import Intake
    from trio_gateway.services.tenants import Tenants

log = structlog.get_logger()

GROUP = 1000  # lines stored at once
SLICE = 256 * 1024  # bytes looked at, and
STINT = 0.002  # seconds spent, before others may go first
DROP_LIMIT = 2.0  # seconds to give a lease back; it ends by itself otherwise
NAMES = 64  # models of one file, where none of them is going to run


class _WaitError(Exception):
    """The batch cannot be judged just now."""


def _unheard(_: str) -> None:
    """Tell nobody."""


@dataclass(frozen=True, slots=True)
class Validator:
    """Validates batches, one after the other."""

    tenants: Tenants
    gate: Gate
    blobs: Blobs
    intake: Intake
    lease: float  # seconds
    tenant_batches: int  # of one tenant under way at once
    max_line: int  # bytes
    ended: Callable[[str], object] = _unheard  # told of each batch that fails here

    async def once(self) -> bool:
        """Validate one batch; False if there is none, or if it has to wait.

        While no model is known none is begun. While a backend has not been heard of lately, a
        batch that names a model not seen elsewhere waits until its lease is over.
        May raise StoreUnavailable.
        """
        if not self.gate.catalog.models():
            return False
        token = uuid4()
        claimed = await self.intake.claim(token, self.lease, self.tenant_batches)
        if claimed is None:
            return False
        found, purpose = claimed
        done = waits = False
        try:
            done = await self._keep(found, purpose, token)
        except* _WaitError:
            waits = True
            log.info("batch_waits_for_a_backend", batch_id=found.id)
        except* StoreUnavailable:
            log.info("batch_waits_for_stores", batch_id=found.id)
        finally:
            if not waits:
                with trio.move_on_after(DROP_LIMIT, shield=True), suppress(StoreUnavailable):
                    await self.intake.drop(found.id, token)
        return done or waits

    async def _keep(self, found: Batch, purpose: str | None, token: UUID) -> bool:
        """Hold the lease while the batch is validated; once it is lost, stop."""
        with trio.CancelScope() as held:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._hold, found, token, held)
                await self._settle(found, purpose, token)
                nursery.cancel_scope.cancel()
        return True

    async def _hold(self, found: Batch, token: UUID, held: trio.CancelScope) -> None:
        while True:
            await trio.sleep(self.lease / 3)
            with suppress(StoreUnavailable):  # the next attempt may still be in time
                if not await self.intake.renew(found.id, token, self.lease):
                    held.cancel()

    async def _settle(self, found: Batch, purpose: str | None, token: UUID) -> None:
        """Let the batch begin or fail; whoever was overtaken does neither."""
        try:
            errors = await self._examine(found, purpose, token)
        except (_WaitError, StoreUnavailable):
            raise
        except Exception:
            log.exception("batch_validation_broke", batch_id=found.id)
            errors = [broken()]
        if errors and await self.intake.fail(found.id, token, errors):
            self.ended("failed")

    async def _examine(self, found: Batch, purpose: str | None, token: UUID) -> list[LineError]:
        """Queue the lines and begin, or return what is wrong."""
        if purpose is None or found.input_blob is None:
            known = purpose not in {None, PURPOSE}
            return [not_for_batches() if known else cannot_find(found.input_file_id)]
        inspection = Inspection(Rules(found.endpoint, await self._finder(found), self.max_line))
        reading = _Reading(self.intake, found.id, token, inspection)
        try:
            await self._read(found.input_blob, reading)
        except BlobMissing:
            return [cannot_find(found.input_file_id)]
        errors = inspection.verdict()
        if not errors and await reading.flush():
            await self.intake.begin(found.id, token, inspection.total, inspection.models)
        return errors

    async def _read(self, blob: str, reading: _Reading) -> None:
        splitter = LineSplitter(self.max_line)
        async with self.blobs.reader(blob) as reader:
            while piece := await reader.read():
                for at in range(0, len(piece), SLICE):
                    if not await reading.take(splitter.feed(piece[at : at + SLICE])):
                        return
        await reading.take(splitter.close())

    async def _finder(self, found: Batch) -> Callable[[str], str | None]:
        try:
            principal = await self.tenants.recall(found.key_id)
        except Unauthenticated:
            return _any_model()  # each line will be refused for the key when its turn comes
        return lambda name: self._find(principal, name)

    def _find(self, principal: Principal, name: str) -> str | None:
        try:
            full = canonical(name).full
        except InvalidModelName:
            return None
        try:
            self.gate.authorize(principal, full)
        except ModelNotFound:
            if not self.gate.catalog.complete:
                raise _WaitError from None
            return None
        return full


class _Reading:
    """One pass through a file; lines are stored in groups, and none once there are errors."""

    def __init__(self, intake: Intake, batch_id: str, token: UUID, inspection: Inspection) -> None:
        self._intake = intake
        self._batch_id = batch_id
        self._token = token
        self._inspection = inspection
        self._group: list[Line] = []
        self._held = True  # whether the lease was still ours when last seen
        self._size = 0  # bytes looked at since others could go first
        self._since = time.perf_counter()

    async def take(self, lines: Iterator[RawLine]) -> bool:
        """Take some lines; return whether more are wanted."""
        for raw in lines:
            line = self._inspection.check(raw)
            if self._inspection.over:
                return False
            if line is not None and not self._inspection.errors:
                self._group.append(line)
            if len(self._group) >= GROUP and not await self.flush():
                return False
            self._size += raw.length
            if self._size >= SLICE or time.perf_counter() - self._since >= STINT:
                await self._pause()
        await self._pause()
        return True

    async def flush(self) -> bool:
        """Store what waits; return whether the lease is still ours."""
        group, self._group = self._group, []
        if self._held and group and not self._inspection.errors:
            self._held = await self._intake.add_lines(self._batch_id, self._token, group)
        return self._held

    async def _pause(self) -> None:
        await trio.lowlevel.checkpoint()
        self._size, self._since = 0, time.perf_counter()


def _any_model() -> Callable[[str], str | None]:
    """Take every name that could be a model's; past NAMES of them, one stands for the rest."""
    names: dict[str, None] = {}

    def find(name: str) -> str | None:
        try:
            full = canonical(name).full
        except InvalidModelName:
            return None
        if len(names) < NAMES:
            names[full] = None
        return full if full in names else next(iter(names))

    return find
