"""The record: what operators changed, field by field, and what callers were refused."""

from __future__ import annotations

from typing import Any

from quart import Blueprint, Response

from trio_gateway.web.admin.dashboard.paging import PAGE, argument, number_in
from trio_gateway.web.admin.dashboard.shell import books, page

NOISE = frozenset({"updated_at", "effective_budget"})  # the second follows from others

blueprint = Blueprint("audit", __name__)


@blueprint.get("/audit")
async def acts() -> Response:
    """Show changes, the latest first."""
    subject, before = argument("subject"), number_in("before")
    rows = await books().reports.acts(None, PAGE + 1, before, subject or None)
    return await page(
        "audit.html",
        rows=[{**row, "changes": changes(row["before"], row["after"])} for row in rows[:PAGE]],
        subject=subject,
        before=before,
        more=rows[PAGE - 1]["id"] if len(rows) > PAGE else None,
    )


@blueprint.get("/audit/refusals")
async def refusals() -> Response:
    """Show refusals, the latest first."""
    tenant, before = argument("tenant"), number_in("before")
    rows = await books().reports.refusals(None, tenant or None, PAGE + 1, before)
    return await page(
        "refusals.html",
        rows=rows[:PAGE],
        tenant=tenant,
        before=before,
        more=rows[PAGE - 1]["id"] if len(rows) > PAGE else None,
    )


def changes(before: Any, after: Any) -> list[tuple[str, Any, Any]]:
    """Return the fields that differ, as (name, before, after); None stands for no field."""
    old, new = (row if isinstance(row, dict) else {} for row in (before, after))
    names = [name for name in {**old, **new} if name not in NOISE]
    return [
        (name, old.get(name), new.get(name)) for name in names if old.get(name) != new.get(name)
    ]
