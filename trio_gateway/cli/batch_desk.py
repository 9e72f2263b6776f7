"""Batches as rows for an operator: with the tenant's name, and the counts by their names."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from trio_gateway.cli.session import ACTOR
from trio_gateway.core.batches import Status
from trio_gateway.services.account_rows import storable
from trio_gateway.services.tenant_names import tenant_names

if TYPE_CHECKING:
    from trio_gateway.cli.session import Desk
    from trio_gateway.core.batches import Batch

Row = dict[str, Any]

_LEFT_OUT = {"input_blob", "models"}
_SHOWN_ERRORS = 5


async def listing(desk: Desk, tenant: str | None, status: str | None, limit: int) -> list[Row]:
    """Return batches, newest first."""
    owner = None if tenant is None else (await desk.accounts.show(tenant))["id"]
    wanted = None if status is None else Status(status)
    return await rows_of(desk, await desk.batches.all(owner, wanted, limit))


async def find(desk: Desk, batch_id: str) -> Row:
    """Return one batch; raises NotFound."""
    return (await rows_of(desk, [await desk.batches.find_any(storable(batch_id))]))[0]


async def cancel(desk: Desk, batch_id: str) -> Row:
    """Begin to cancel a batch and return it; raises NotFound or Conflict."""
    return (await rows_of(desk, [await desk.batches.cancel_any(storable(batch_id), ACTOR)]))[0]


async def rows_of(desk: Desk, batches: list[Batch]) -> list[Row]:
    """Return the rows of some batches."""
    names = await tenant_names(desk.postgres, {batch.tenant_id for batch in batches})
    return [row_of(batch, names[batch.tenant_id]) for batch in batches]


def row_of(batch: Batch, tenant: str) -> Row:
    """Return one batch as a row."""
    head = {"id": batch.id, "tenant": tenant, "status": str(batch.status), "paused": batch.paused}
    rest = {name: value for name, value in asdict(batch).items() if name not in _LEFT_OUT}
    return head | {**rest, "status": str(batch.status), "models": list(batch.models)}


def legible(row: Row) -> Row:
    """Leave out what is not yet so, and put each error of the file on a line of its own."""
    rest = {name: value for name, value in row.items() if value not in (None, [], {})}
    errors = rest.pop("errors", [])
    for place, error in enumerate(errors[:_SHOWN_ERRORS], 1):
        rest[f"error {place}"] = sentence(error)
    if len(errors) > _SHOWN_ERRORS:
        rest["more errors"] = len(errors) - _SHOWN_ERRORS
    return rest


def sentence(error: Row) -> str:
    """Say one error of a batch's file."""
    where = f"line {error['line']}: " if error["line"] is not None else ""
    return f"{where}{error['message']} ({error['code']})"


async def tenant_of(desk: Desk, batch: Batch) -> str:
    """Return the name of a batch's tenant."""
    return str((await rows_of(desk, [batch]))[0]["tenant"])


def verdict(batch: Batch) -> str | None:
    """Return None for a batch that completed, else one line on how it ended."""
    if batch.status is Status.COMPLETED:
        return None
    first = [sentence(asdict(error)) for error in (batch.errors or [])[:3]]
    if len(batch.errors or []) > 3:
        first.append(f"and {len(batch.errors or []) - 3} more")
    if batch.status is Status.FAILED:
        why = "; ".join(first)
    else:
        why = f"{batch.completed} of {batch.total} lines were answered"
    return f"batch {batch.id} is {batch.status}" + (f": {why}" if why else "")
