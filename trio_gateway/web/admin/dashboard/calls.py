"""Calls under way on every machine, and the way to end one."""

from __future__ import annotations

from quart import Blueprint, Response

from trio_gateway.services.calls import MOST
from trio_gateway.web.admin.dashboard.forms import fields
from trio_gateway.web.admin.dashboard.paging import argument
from trio_gateway.web.admin.dashboard.shell import books, done, page
from trio_gateway.web.admin.guard import officer
from trio_gateway.web.admin.office import office

SHOWN = 200

blueprint = Blueprint("calls", __name__)


@blueprint.get("/calls")
async def listing() -> Response:
    """Show the calls, the oldest first."""
    name = argument("tenant")
    tenant = await books().accounts.show(name) if name else None
    rows = await office().calls.listing(None if tenant is None else tenant["id"])
    return await page(
        "calls.html",
        rows=rows[:SHOWN],
        count=len(rows),
        tenant=tenant,
        shown=SHOWN,
        most=MOST,
    )


@blueprint.post("/calls/cut")
async def cut() -> Response:
    """End one call wherever it runs."""
    request_id = (await fields()).text("request_id", 100)
    await office().calls.cut(request_id, officer().actor)
    return done("call.cut", "/calls")
