"""/admin/v1/batches: every tenant's batches."""

from collections.abc import Sequence
from dataclasses import asdict
from datetime import datetime
from typing import Any

from pydantic import Field

from trio_gateway.core.batches import Batch as Found
from trio_gateway.core.batches import Status
from trio_gateway.services.account_rows import storable
from trio_gateway.services.tenant_names import tenant_names
from trio_gateway.web.admin.api.owners import tenant_id
from trio_gateway.web.admin.api.paging import page
from trio_gateway.web.admin.api.sections import Section, actor, books
from trio_gateway.web.admin.api.shapes import Answer, Name, Page, Paged
from trio_gateway.web.admin.office import office

section = Section("batches")


class BatchList(Paged):
    """Batches, the latest first."""

    tenant: Name | None = Field(None, description="Only this tenant's, by name or id.")
    status: Status | None = None


class BatchError(Answer):
    """What was wrong with a batch's file; `line` is null for the file as a whole."""

    code: str
    message: str
    param: str | None
    line: int | None


class Batch(Answer):
    """A batch, its counts and its times; `paused` says why no line is dispatched just now."""

    id: str
    tenant: str | None
    tenant_id: str
    key_id: str
    status: Status
    paused: str | None
    endpoint: str
    models: list[str]
    total: int
    completed: int
    failed: int
    input_tokens: int
    output_tokens: int
    input_file_id: str
    output_file_id: str | None
    error_file_id: str | None
    errors: list[BatchError] | None
    metadata: dict[str, str] | None
    created_at: datetime
    expires_at: datetime
    in_progress_at: datetime | None
    finalizing_at: datetime | None
    completed_at: datetime | None
    failed_at: datetime | None
    expired_at: datetime | None
    cancelling_at: datetime | None
    cancelled_at: datetime | None


@section.get("/batches", Page[Batch], query=BatchList)
async def list_batches(query: BatchList) -> Any:
    """List batches, the latest first."""
    owner = await tenant_id(query.tenant)
    found = await books().batches.all(owner, query.status, query.limit + 1, query.cursor)
    return page(await _rows(found), query.limit, lambda row: row["id"])


@section.get("/batches/<batch>", Batch)
async def show_batch(batch: str) -> Any:
    """Show a batch, its counts, its times and what was wrong with its file."""
    return (await _rows([await books().batches.find_any(storable(batch))]))[0]


@section.post("/batches/<batch>/cancel", Batch, conflicts=True)
async def cancel_batch(batch: str) -> Any:
    """Cancel a batch; what was answered already is kept in its output file."""
    return (await _rows([await books().batches.cancel_any(storable(batch), actor())]))[0]


async def _rows(batches: Sequence[Found]) -> list[dict[str, Any]]:
    names = await tenant_names(office().postgres, {batch.tenant_id for batch in batches})
    return [asdict(batch) | {"tenant": names.get(batch.tenant_id)} for batch in batches]
