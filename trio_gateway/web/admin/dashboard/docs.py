"""The admin API, described."""

from __future__ import annotations

from quart import Blueprint, Response

from trio_gateway.web.admin.api.docs import described
from trio_gateway.web.admin.dashboard.shell import page

blueprint = Blueprint("docs", __name__)


@blueprint.get("/docs")
async def show() -> Response:
    """Show every route of the admin API."""
    return await page("docs.html", **described())
