"""The stream of live numbers."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, cast

from quart import Blueprint, Response, current_app, g, request

from trio_gateway.web.admin.dashboard.feed import Feed
from trio_gateway.web.admin.dashboard.numbers import pulse
from trio_gateway.web.admin.office import office

if TYPE_CHECKING:
    from quart_trio import QuartTrio

STREAM = "text/event-stream; charset=utf-8"
PLACE = "trio_gateway_feed"

blueprint = Blueprint("events", __name__)


@blueprint.get("/events")
async def events() -> Response:
    """Send the numbers once a second."""
    if request.method == "HEAD":
        return Response(b"", 200, content_type=STREAM)
    feed, session_id = feed_of(), g.session.id
    feed.check_room(session_id)
    nursery = cast("QuartTrio", current_app).nursery
    response = Response(feed.stream(session_id, nursery), 200, content_type=STREAM)
    response.headers["x-accel-buffering"] = "no"
    return response


def feed_of() -> Feed:
    """Return the one feed of this process."""
    found = current_app.extensions.get(PLACE)
    if found is None:
        here = office()
        found = Feed(partial(pulse, here), here.sessions.alive, here.leaving)
        current_app.extensions[PLACE] = found
    return cast("Feed", found)


async def leave() -> None:
    """End all streams, however the listener is stopped."""
    office().leaving.set()
