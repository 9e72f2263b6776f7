"""Batches with their progress, and files."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from quart import Blueprint, Response

from trio_gateway.core.batches import TERMINAL, Status
from trio_gateway.services.tenant_names import tenant_names
from trio_gateway.web.admin.dashboard.named import names_of
from trio_gateway.web.admin.dashboard.paging import PAGE, argument, one_of
from trio_gateway.web.admin.dashboard.shell import books, done, page
from trio_gateway.web.admin.guard import officer
from trio_gateway.web.admin.office import office

if TYPE_CHECKING:
    from collections.abc import Iterable

    from trio_gateway.core.batches import Batch

STATUSES = ("", *Status)

blueprint = Blueprint("batches", __name__)


@blueprint.get("/batches")
async def listing() -> Response:
    """Show batches of all tenants, or of one, the newest first."""
    name, status = argument("tenant"), one_of("status", STATUSES)
    tenant = await books().accounts.show(name) if name else None
    before = argument("before")
    rows = await books().batches.all(
        None if tenant is None else tenant["id"],
        Status(status) if status else None,
        PAGE + 1,
        before or None,
    )
    asked = {"tenant": name, "status": status}
    return await page(
        "batches.html",
        rows=rows[:PAGE],
        tenants=await _names(row.tenant_id for row in rows[:PAGE]),
        asked={each: text for each, text in asked.items() if text},
        before=before,
        more=rows[PAGE - 1].id if len(rows) > PAGE else None,
        tenant=tenant,
        chosen=status,
        statuses=[(each, each.replace("_", " ") or "all") for each in STATUSES],
        ended=TERMINAL,
    )


@blueprint.get("/batches/<batch_id>")
async def show(batch_id: str) -> Response:
    """Show one batch."""
    batch = await books().batches.find_any(batch_id)
    return await page(
        "batch.html",
        batch=batch,
        names=await names_of([batch.tenant_id, batch.key_id]),
        files=[
            (what, file_id)
            for what, file_id in (
                ("Input", batch.input_file_id),
                ("Output", batch.output_file_id),
                ("Errors", batch.error_file_id),
            )
            if file_id
        ],
        steps=_steps(batch),
        ended=batch.status in TERMINAL,
    )


@blueprint.post("/batches/<batch_id>/cancel")
async def cancel(batch_id: str) -> Response:
    """Begin to cancel a batch."""
    batch = await books().batches.cancel_any(batch_id, officer().actor)
    return done("batch.cancel", f"/batches/{batch.id}")


@blueprint.get("/files")
async def files() -> Response:
    """Show files, the newest first, or the one whose id is asked for."""
    name, before, one = argument("tenant"), argument("before"), argument("file")
    if one:
        rows = [await books().files.show(one)]
    else:
        rows = await books().files.listing(name or None, None, PAGE + 1, before or None)
    return await page(
        "files.html",
        rows=rows[:PAGE],
        tenant=name,
        one=one,
        before=before,
        more=rows[PAGE - 1]["id"] if len(rows) > PAGE else None,
    )


@blueprint.post("/files/<file_id>/delete")
async def delete(file_id: str) -> Response:
    """Hide a file for good."""
    await books().files.delete(file_id)
    return done("file.delete", "/files")


async def _names(tenant_ids: Iterable[str]) -> dict[str, str]:
    return await tenant_names(office().postgres, set(tenant_ids))


def _steps(batch: Batch) -> list[tuple[str, Any]]:
    names = (
        "created_at",
        "in_progress_at",
        "finalizing_at",
        "completed_at",
        "failed_at",
        "expired_at",
        "cancelling_at",
        "cancelled_at",
    )
    found = [(name.removesuffix("_at"), getattr(batch, name)) for name in names]
    return sorted([step for step in found if step[1] is not None], key=lambda step: step[1])
