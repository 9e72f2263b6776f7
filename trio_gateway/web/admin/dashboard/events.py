"""The stream of live numbers."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from quart import Blueprint, Response, current_app, g, request

from trio_gateway.web.admin.office import office

if TYPE_CHECKING:
    from quart_trio import QuartTrio

STREAM = "text/event-stream; charset=utf-8"

blueprint = Blueprint("events", __name__)


@blueprint.get("/events")
async def events() -> Response:
    """Send the numbers once a second."""
    if request.method == "HEAD":
        return Response(b"", 200, content_type=STREAM)
    feed, session_id = office().feed, g.session.id
    feed.check_room(session_id)
    nursery = cast("QuartTrio", current_app).nursery
    response = Response(feed.stream(session_id, nursery), 200, content_type=STREAM)
    response.headers["x-accel-buffering"] = "no"
    return response


async def leave() -> None:
    """End all streams, however the listener is stopped."""
    office().leaving.set()
