"""Budgets near their end, and where that is told."""

from __future__ import annotations

from functools import partial
from typing import Any

from quart import Blueprint, Response

from trio_gateway.services.account_rows import Refused
from trio_gateway.web.admin.dashboard.forms import fields
from trio_gateway.web.admin.dashboard.paging import PAGE, number_in
from trio_gateway.web.admin.dashboard.shell import books, done, page
from trio_gateway.web.admin.dashboard.together import POSTGRES, together
from trio_gateway.web.admin.office import office

NEAR_END = 20  # budgets shown

blueprint = Blueprint("notices", __name__)


@blueprint.get("/notices")
async def listing() -> Response:
    """Show the budgets that are near their end, and every notice, the latest first."""
    before, notices = number_in("before"), books().notices
    found, missing = await together(
        current=(POSTGRES, partial(notices.current, NEAR_END)),
        rows=(POSTGRES, partial(notices.listing, None, None, None, before, PAGE + 1)),
    )
    rows = found["rows"] or []
    return await page(
        "notices.html",
        503 if missing else 200,
        missing=missing,
        current=found["current"] or [],
        rows=rows[:PAGE],
        before=before,
        more=rows[PAGE - 1]["id"] if len(rows) > PAGE else None,
    )


@blueprint.get("/webhooks")
async def webhooks() -> Response:
    """Show where notices are sent."""
    return await _page()


@blueprint.post("/webhooks")
async def create() -> Response:
    """Add a webhook and show the secret that signs, this once."""
    form = await fields()
    try:
        row = await books().webhooks.create(
            form.text("name", 63), form.text("url", 2000), form.text("tenant") or None
        )
    except Refused as error:
        return await _page(form.written, error)
    return await _once(row, "The webhook is there")


@blueprint.get("/webhooks/<webhook_id>")
async def show(webhook_id: str) -> Response:
    """Show one webhook and its latest deliveries."""
    return await page("webhook.html", webhook=await books().webhooks.show(webhook_id, PAGE))


@blueprint.post("/webhooks/<webhook_id>/rotate")
async def rotate(webhook_id: str) -> Response:
    """Give a webhook a new secret and show it, this once."""
    return await _once(await books().webhooks.rotate(webhook_id), "The webhook has a new secret")


@blueprint.post("/webhooks/<webhook_id>/test")
async def test(webhook_id: str) -> Response:
    """Have a test message sent."""
    await books().webhooks.test(webhook_id)
    return done("webhook.test", f"/webhooks/{(await books().webhooks.show(webhook_id))['id']}")


@blueprint.post("/webhooks/<webhook_id>/<any(disable,enable):act>")
async def switch(webhook_id: str, act: str) -> Response:
    """Send nothing there for now, or again."""
    row = await books().webhooks.update(webhook_id, {"disabled": act == "disable"})
    return done(f"webhook.{act}", f"/webhooks/{row['id']}")


@blueprint.post("/webhooks/<webhook_id>/delete")
async def delete(webhook_id: str) -> Response:
    """Remove a webhook."""
    await books().webhooks.delete(webhook_id)
    return done("webhook.delete", "/webhooks")


async def _page(values: dict[str, Any] | None = None, error: Refused | None = None) -> Response:
    return await page(
        "webhooks.html",
        400 if error else 200,
        rows=await books().webhooks.listing(),
        hosts=office().settings.webhook_hosts,
        values=values or {},
        error=error,
    )


async def _once(row: dict[str, Any], title: str) -> Response:
    return await page(
        "secret.html",
        title=title,
        secret=row["secret"],
        what="secret",
        whose=f"Secret of webhook {row['name']}.",
        back=f"/webhooks/{row['id']}",
        section="/webhooks",
        until=None,
    )
