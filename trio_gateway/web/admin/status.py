"""Whether the process is alive; the rest is the admin API's `health`."""

from __future__ import annotations

from quart import Blueprint, Response

TEXT = "text/plain; charset=utf-8"

blueprint = Blueprint("status", __name__)


@blueprint.get("/healthz")
async def alive() -> Response:
    """Say that the process serves."""
    return Response("ok", 200, content_type=TEXT)
