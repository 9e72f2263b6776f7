"""Alive, and what runs here."""

from __future__ import annotations

import os

from quart import Blueprint, Response, jsonify

from trio_gateway import __version__
from trio_gateway.web.admin.guard import officer

TEXT = "text/plain; charset=utf-8"

blueprint = Blueprint("status", __name__)


@blueprint.get("/healthz")
async def alive() -> Response:
    """Say that the process serves."""
    return Response("ok", 200, content_type=TEXT)


@blueprint.get("/admin/v1/status")
async def status() -> Response:
    """Say what runs here, and as whom the caller is known."""
    found = officer()
    return jsonify(
        version=__version__,
        supervisor_pid=os.getppid(),
        name=found.name,
        role=found.role,
    )
