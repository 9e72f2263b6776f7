"""Holds: what a call may still cost, as it stands in Redis and in the worker that owns it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import orjson

from trio_gateway.core.domain import Basis, LedgerRow, Outcome

if TYPE_CHECKING:
    from collections.abc import Callable

QUEUED, DISPATCHED, FINAL = "queued", "dispatched", "final"


@dataclass(slots=True)
class Hold:
    """An admitted call's hold, as its worker keeps it. `text` is the entry in Redis."""

    request_id: str
    tenant_id: str
    key_id: str
    started_us: int
    ceiling: int  # output tokens
    cost: int  # units
    text: str
    phase: str
    renewed_at: float  # this worker's monotonic seconds
    output: int = 0
    renewals: int = 0
    reconnected: bool = False  # since the last renewal
    final: LedgerRow | None = None
    swept: Callable[[], None] = field(default=lambda: None)


@dataclass(frozen=True, slots=True)
class Found:
    """A hold as a sweeper reads it from Redis."""

    request_id: str
    tenant_id: str
    key_id: str
    started_us: int
    day: str  # YYYY-MM-DD, in UTC
    cost: int
    phase: str
    renewals: str
    lease_until_us: int
    output: int
    final: LedgerRow | None
    opaque: dict[str, Any]


def encode_row(row: LedgerRow) -> str:
    """Encode a ledger row for a hold in phase `final`, or for PostgreSQL."""
    return orjson.dumps(row).decode()


def decode_row(text: str) -> LedgerRow:
    """Undo `encode_row`."""
    fields = orjson.loads(text)
    fields["outcome"] = Outcome(fields["outcome"])
    fields["basis"] = Basis(fields["basis"])
    return LedgerRow(**fields)


def with_backend(text: str, backend: str) -> str:
    """Add to a hold's text where its call was sent."""
    *known, opaque = text.split("|", 6)
    return "|".join([*known, orjson.dumps({**orjson.loads(opaque), "backend": backend}).decode()])


def parse_found(tenant_id: str, request_id: str, text: str, lease: str) -> Found:
    """Read one hold and its lease as the scripts wrote them."""
    started, day, cost, _ceiling, key_id, _hit, opaque = text.split("|", 6)
    # A hold without its lease was put back by half a renewal: treat it as long expired.
    phase, renewals, until, _, output, final = (lease or "dispatched|-|0|0|0|").split("|", 5)
    return Found(
        request_id=request_id,
        tenant_id=tenant_id,
        key_id=key_id,
        started_us=int(started),
        day=day,
        cost=int(cost),
        phase=phase,
        renewals=renewals,
        lease_until_us=int(until),
        output=int(output),
        final=decode_row(final) if final else None,
        opaque=orjson.loads(opaque),
    )


def refused_row(
    request_id: str,
    tenant_id: str,
    key_id: str,
    opaque: dict[str, Any],
    started_us: int,
    held: int,
) -> LedgerRow:
    """Build the row of a call that was admitted and never dispatched."""
    return LedgerRow(
        request_id=request_id,
        tenant_id=tenant_id,
        key_id=key_id,
        endpoint=opaque["endpoint"],
        model=opaque["model"],
        status_code=503,
        outcome=Outcome.REFUSED,
        basis=Basis.NONE,
        prompt_tokens=0,
        completion_tokens=0,
        charged_tokens=0,
        held_tokens=held,
        backend=None,
        started_us=started_us,
        ttft_ms=None,
        duration_ms=0.0,
        batch_id=opaque.get("batch_id"),
    )
