"""The record: what operators changed, field by field, and what callers were refused."""

from __future__ import annotations

from contextlib import suppress
from datetime import datetime
from typing import TYPE_CHECKING, Any

from quart import Blueprint, Response

from trio_gateway.web.admin.api.audit import Act
from trio_gateway.web.admin.api.exports import STEP, export
from trio_gateway.web.admin.dashboard.named import names_of
from trio_gateway.web.admin.dashboard.paging import PAGE, argument, number_in
from trio_gateway.web.admin.dashboard.shell import books, page

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from trio_gateway.web.admin.api.exports import Format

NOISE = frozenset({"updated_at", "effective_budget"})  # the second follows from others

blueprint = Blueprint("audit", __name__)


@blueprint.get("/audit")
async def acts() -> Response:
    """Show changes, the latest first."""
    asked, before, reports = _asked(), number_in("before"), books().reports
    rows = await reports.acts(None, PAGE + 1, before, **asked)
    actions = sorted({*await reports.actions(), asked.get("action", "")} - {""})
    return await page(
        "audit.html",
        rows=[{**row, "changes": changes(row["before"], row["after"])} for row in rows[:PAGE]],
        names=await _names(rows[:PAGE]),
        asked=asked,
        actors=await reports.actors(),
        actions=[("", "all"), *((each, each) for each in actions)],
        before=before,
        more=rows[PAGE - 1]["id"] if len(rows) > PAGE else None,
    )


@blueprint.get("/audit.<any(csv,jsonl):kind>")
async def send(kind: Format) -> Response:
    """Send every change that is asked for, the latest first."""
    return await export("audit", Act, kind, _pages(_asked()), marked=True)


async def _pages(asked: dict[str, str]) -> AsyncGenerator[list[dict[str, Any]], None]:
    before = None
    while True:
        rows = await books().reports.acts(None, STEP, before, **asked)
        yield rows
        if len(rows) < STEP:
            return
        before = rows[-1]["id"]


def _asked() -> dict[str, str]:
    """Return what the address asks for, without what it leaves open."""
    return {name: argument(name) for name in ("actor", "action", "subject") if argument(name)}


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
