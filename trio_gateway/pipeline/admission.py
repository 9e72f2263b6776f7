"""Admission: hold what a call may cost; on the way out, settle what it did cost."""

from __future__ import annotations

import math
import secrets
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

import trio

from trio_gateway.core.domain import Basis, LedgerRow, Outcome
from trio_gateway.core.errors import (
    CallCut,
    ClientStalled,
    GatewayError,
    InvalidCall,
    ModelNotFound,
    ShuttingDown,
    Unauthenticated,
    UpstreamTimeout,
    UpstreamUnavailable,
)
from trio_gateway.core.timeline import Timeline
from trio_gateway.core.tokens import Count, believe, charge, estimate
from trio_gateway.services.quota.holds import FINAL
from trio_gateway.services.quota.quota import Ask

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from trio_gateway.core.domain import Call, Chunk, Principal, Standing
    from trio_gateway.pipeline.gate import Gate, Route
    from trio_gateway.services.backends import Slot
    from trio_gateway.services.live import Leash
    from trio_gateway.services.quota.holds import Hold
    from trio_gateway.services.slots import Priority

# Upstream refused these before it did any work: they cost nothing.
UNTOUCHED = (InvalidCall, ModelNotFound, UpstreamUnavailable)
ANSWERED = (Outcome.COMPLETED, Outcome.CUT)
BATCH_SHARE = 800  # thousandths of a window; the rest is for live calls alone
SETTLE_LIMIT = 5.0  # seconds; after it the writer goes on by itself, and the sweep stands behind


def new_request_id() -> str:
    """Return the id of one answer, its ledger row and its `x-request-id`."""
    return "req_" + secrets.token_hex(12)


def begin() -> Timeline:
    """Return the timeline of a call that arrives now."""
    return Timeline(trio.current_time())


@dataclass(frozen=True, slots=True)
class Errand:
    """A call and whose it is: all that admission wants to know.

    `deadline` is the trio time by which it must be over, the queue included.
    """

    request_id: str
    principal: Principal
    call: Call
    priority: Priority = "live"
    batch_id: str | None = None
    deadline: float = math.inf
    timeline: Timeline = field(default_factory=begin)


class Admission:
    """The account of one admitted call while it runs."""

    def __init__(self, errand: Errand, route: Route, hold: Hold, standing: Standing) -> None:
        """Begin with nothing dispatched, and no end but the one that a cancel leaves."""
        self.errand = errand
        self.timeline = errand.timeline
        self.route = route
        self.hold = hold
        self.standing = standing
        self.count = Count(estimate=estimate(errand.call), ceiling=hold.ceiling)
        self.outcome: Outcome | None = None
        self.status_code = 499
        self.backend = ""
        self._began = trio.current_time()
        self._first_byte: float | None = None

    def dispatched(self, backend: str) -> None:
        """Note that upstream is about to be opened: from here on the GPU may work."""
        self.backend = backend
        self.count.dispatched = True
        self.timeline.dispatched = trio.current_time()

    def answered(self) -> None:
        """Note the first bytes from upstream."""
        self._first_byte = self.timeline.first_byte = trio.current_time()
        if self.errand.call.stream:
            self.status_code = 200

    def meter(self, chunk: Chunk) -> bool:
        """Count one chunk; return whether the ceiling has been passed."""
        self.count.meter(chunk)
        self.hold.output = self.count.seen
        return self.count.seen > self.hold.ceiling and not chunk.done

    def restate(self, done: Chunk) -> None:
        """Tell the caller the counts that will be charged, where upstream's cannot be true."""
        usage = believe(self.errand.call, self.count)
        if usage.basis is Basis.PARTIAL:
            done.prompt_tokens, done.output_tokens = usage.prompt_tokens, usage.completion_tokens

    def finish(self, outcome: Outcome) -> None:
        """Say how the call ended."""
        self.outcome = outcome
        if outcome in ANSWERED:
            self.status_code = 200

    def fail(self, error: Exception) -> None:
        """Take the outcome from an error; an answer that has begun keeps its status."""
        if self._first_byte is None and isinstance(error, UNTOUCHED):
            self.count.dispatched = False
        self.outcome = _outcome_of(error, dispatched=bool(self.backend))
        if self._first_byte is None or not self.errand.call.stream:
            self.status_code = error.status if isinstance(error, GatewayError) else 500

    def row(self) -> LedgerRow:
        """Write the call's ledger row as things stand."""
        usage = believe(self.errand.call, self.count)
        now = trio.current_time()
        ttft = None if self._first_byte is None else (self._first_byte - self._began) * 1000
        return LedgerRow(
            request_id=self.hold.request_id,
            tenant_id=self.hold.tenant_id,
            key_id=self.hold.key_id,
            endpoint=self.errand.call.endpoint,
            model=self.errand.call.model,
            status_code=self.status_code,
            outcome=self.outcome or Outcome.ABORTED,
            basis=usage.basis,
            prompt_tokens=usage.prompt_tokens,
            completion_tokens=usage.completion_tokens,
            charged_tokens=charge(usage.tokens, self.route.policy.milli_weight),
            held_tokens=self.hold.cost,
            backend=self.backend or None,
            started_us=self.hold.started_us,
            ttft_ms=ttft,
            duration_ms=(now - self._began) * 1000,
            batch_id=self.errand.batch_id,
        )


@asynccontextmanager
async def admit(gate: Gate, leash: Leash, errand: Errand, route: Route) -> AsyncIterator[Admission]:
    """Reserve, wait for a slot, and lend the admission; leaving releases and settles.

    A slot that is free at once is taken first, so that the reserve can write the phase. Raises
    RateLimited, BudgetExhausted, Overloaded, UpstreamTimeout, StoreUnavailable or the leash's
    reason.
    """
    tenant = errand.principal.tenant
    slot = gate.backends.try_take(route.backends)
    try:
        hold, standing = await gate.quota.reserve(
            _ask(gate, errand, route, slot), partial(leash.cover, errand.deadline)
        )
    except BaseException:
        if slot is not None:
            slot.release()
        raise
    admission = Admission(errand, route, hold, standing)
    timeline = admission.timeline
    timeline.reserved = timeline.granted = trio.current_time()
    try:
        if slot is None:
            with leash.cover(errand.deadline):
                slot = await gate.backends.take(
                    tenant.id, tenant.weight_share, route.backends, errand.priority
                )
                timeline.granted = trio.current_time()
                await gate.quota.mark_dispatched(hold, slot.backend)
        await trio.lowlevel.checkpoint_if_cancelled()
        leash.fail_if_cut()
        admission.dispatched(slot.backend)
        yield admission
    except Exception as error:
        admission.fail(error)
        raise
    finally:
        if slot is not None:
            slot.release()
        timeline.end(trio.current_time())
        if admission.outcome is None:  # cancelled: the client left, or the server is stopping
            admission.finish(Outcome.ABORTED if leash.client_left else Outcome.DRAINED)
        await _settle(gate, admission)  # noqa: ASYNC102 - shielded and bounded inside


def _ask(gate: Gate, errand: Errand, route: Route, slot: Slot | None) -> Ask:
    call, principal = errand.call, errand.principal
    prompt = estimate(call)
    output = 0
    if call.generates:
        output = gate.rules.default_output if call.ask is None else call.ask
        for limits in (principal.tenant.limits, principal.key.limits):
            if limits.max_output_tokens is not None:
                output = min(output, limits.max_output_tokens)
    return Ask(
        request_id=errand.request_id,
        principal=principal,
        estimate=prompt,
        output=output,
        milli_weight=route.policy.milli_weight,
        dispatched=slot is not None,
        opaque={
            "endpoint": call.endpoint,
            "model": call.model,
            "estimate": prompt,
            "milli": route.policy.milli_weight,
            "batch_id": errand.batch_id,
            "backend": slot.backend if slot is not None else None,
        },
        share=BATCH_SHARE if errand.priority == "batch" else 1000,
    )


async def _settle(gate: Gate, admission: Admission) -> None:
    hold = admission.hold
    row = admission.timeline.row = admission.row()
    # Should PostgreSQL or this worker be gone before the row is stored, a renewal carries it
    # into the hold, and a sweeper writes it exactly.
    hold.phase, hold.final = FINAL, row
    done = gate.writer.submit(row)
    with trio.move_on_after(SETTLE_LIMIT, shield=True):
        await done.wait()
        admission.timeline.settled = trio.current_time()


def _outcome_of(error: Exception, *, dispatched: bool) -> Outcome:
    if isinstance(error, Unauthenticated):
        return Outcome.REVOKED
    if isinstance(error, ShuttingDown):
        return Outcome.DRAINED
    if isinstance(error, ClientStalled):
        return Outcome.ABORTED
    if not dispatched:
        return Outcome.REFUSED
    if isinstance(error, CallCut):
        return Outcome.CUT
    return Outcome.TIMEOUT if isinstance(error, UpstreamTimeout) else Outcome.UPSTREAM_ERROR
