"""Error pages: what went wrong, in the dashboard's own shell."""

from __future__ import annotations

import math
from contextlib import suppress
from typing import TYPE_CHECKING

from quart import Response, g, render_template, request

from trio_gateway.clients.postgres import NotMigrated
from trio_gateway.core.errors import GatewayError, MethodNotAllowed, NotFound, StoreUnavailable
from trio_gateway.web.admin.cookies import session_secret
from trio_gateway.web.admin.dashboard.desk import POLICY, SessionsAway, known
from trio_gateway.web.admin.dashboard.paging import MOST
from trio_gateway.web.admin.dashboard.shell import HTML, surroundings
from trio_gateway.web.admin.errors import as_gateway_error
from trio_gateway.web.admin.guard import HostRefused
from trio_gateway.web.admin.office import office
from trio_gateway.web.replies import BUSY_RETRY

if TYPE_CHECKING:
    from collections.abc import Mapping

PLACES = frozenset({"before", "after"})  # in a list, which another list does not have
TITLES: Mapping[int, str] = {
    400: "That cannot be done",
    403: "Not allowed",
    404: "Nothing here",
    405: "Not that way",
    409: "Too late",
    413: "Too large",
    421: "Not this host",
    429: "Too many",
    503: "Not available just now",
}


async def failure_page(error: Exception) -> Response:
    """Render an error for a browser."""
    shown = as_gateway_error(error)
    if shown.status in {404, 405}:
        await _recall()
    text = await render_template(
        "error.html",
        **surroundings(),
        title=TITLES.get(shown.status, "Something went wrong"),
        status=shown.status,
        message=_said(error, shown),
        error=shown,
        filters=_filters(shown),
        shell=not isinstance(error, HostRefused),
        signed_out=shown.code == "signed_out",
    )
    response = Response(text, shown.status, content_type=HTML)
    response.headers["content-security-policy"] = POLICY
    if shown.status == 503:
        response.headers["retry-after"] = str(math.ceil(shown.retry_after or BUSY_RETRY))
    if isinstance(shown, MethodNotAllowed):
        response.headers["allow"] = shown.allow
    return response


def _filters(shown: GatewayError) -> dict[str, str]:
    """Return what the list is asked for, where that names something that is not there."""
    if request.method != "GET" or request.view_args or not isinstance(shown, NotFound):
        return {}
    given = {name: request.args[name][:MOST] for name in request.args if name not in PLACES}
    return given if shown.param in given else {}


async def _recall() -> None:
    """Note who is signed in, for addresses that are no page and so came past no door."""
    secret = None if g.get("session") else session_secret()
    if secret:
        with suppress(StoreUnavailable):
            g.session = await known(secret, seen=False)


def _said(error: Exception, shown: GatewayError) -> str:
    if isinstance(error, SessionsAway):
        return "PostgreSQL cannot be reached, and it keeps the sessions. Pages come back with it."
    if isinstance(error, NotMigrated):
        return "The database is not at this release. Run trio-gateway migrate."
    if isinstance(error, StoreUnavailable):
        away = "PostgreSQL" if office().redis.connected else "Redis"
        return f"{away} cannot be reached. The page comes back when it does."
    text = shown.message
    text = text[:1].upper() + text[1:]
    if shown.param and not isinstance(shown, NotFound):
        text = f"{shown.param.replace('_', ' ').capitalize()}: {shown.message}"
    return text if text.endswith((".", "?", "!")) else f"{text}."
