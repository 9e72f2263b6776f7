"""The routes that a gateway must never reach: they only note that they were called."""

from __future__ import annotations

from typing import TYPE_CHECKING

from quart import Blueprint, Response, current_app, request

from trio_gateway.simulator import wire

if TYPE_CHECKING:
    from trio_gateway.simulator.state import Simulation

blueprint = Blueprint("management", __name__)


@blueprint.post("/api/pull")
@blueprint.post("/api/push")
@blueprint.post("/api/create")
async def progress() -> Response:
    """Note the call, and stream the progress of nothing."""
    _note()
    lines = b'{"status":"pulling manifest"}\n{"status":"success"}\n'
    return Response(lines, content_type=wire.NDJSON)


@blueprint.post("/api/copy")
@blueprint.delete("/api/delete")
@blueprint.post("/api/signout")
@blueprint.delete("/api/user/keys/<path:key>")
@blueprint.post("/api/experimental/web_search")
@blueprint.post("/api/experimental/web_fetch")
@blueprint.route("/api/blobs/<path:digest>", methods=["HEAD", "POST"])
async def nothing(**_parts: str) -> Response:
    """Note the call, and change nothing."""
    _note()
    return Response(b"", content_type=wire.JSON)


@blueprint.post("/api/me")
async def me() -> Response:
    """Note the call."""
    _note()
    return Response(wire.encode({"name": "CANARY-account"}), content_type=wire.JSON)


def _note() -> None:
    sim: Simulation = current_app.sim  # type: ignore[attr-defined]
    sim.management.append(f"{request.method} {request.path}")
