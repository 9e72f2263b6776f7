"""The record: what operators changed, field by field, and what callers were refused."""

from __future__ import annotations

from contextlib import suppress
from datetime import datetime
from typing import Any

from quart import Blueprint, Response

from trio_gateway.web.admin.dashboard.named import names_of
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
        names=await _names(rows[:PAGE]),
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
        names=await names_of(
            {row[name] for row in rows[:PAGE] for name in ("tenant_id", "key_id") if row[name]}
        ),
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


def told(value: Any, name: str) -> Any:
    """Return what a page says of a field: text, an instant, or what was given."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if name == "milli_weight" and isinstance(value, int):
        return f"{value / 1000:g}"
    if isinstance(value, str) and name.endswith(("_at", "_until")):
        with suppress(ValueError):
            return datetime.fromisoformat(value)
    return value


async def _names(rows: list[dict[str, Any]]) -> dict[str, str]:
    """Return the names of subjects by their ids: as they are now, or as the record has them."""
    recorded = {
        row["subject"]: str(each["name"])
        for row in reversed(rows)
        for each in (row["before"], row["after"])
        if isinstance(each, dict) and each.get("name")
    }
    return recorded | await names_of({row["subject"] for row in rows})


blueprint.add_app_template_filter(told)
