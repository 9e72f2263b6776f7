"""The second listener: for operators alone, on loopback unless told otherwise, behind a token.

It runs in the supervisor, so that it answers while workers are being restarted.
"""

from __future__ import annotations

import hashlib
import hmac
import os
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

import orjson
import trio
from hypercorn.config import Config
from hypercorn.trio import serve
from quart import Response, request
from quart_trio import QuartTrio

from trio_gateway import __version__
from trio_gateway.core.errors import Unauthenticated
from trio_gateway.web.credentials import presented_key
from trio_gateway.web.replies import JSON

if TYPE_CHECKING:
    import socket
    from collections.abc import Sequence

REFUSED = b'{"error":{"message":"Incorrect admin token.","type":"invalid_request_error"}}'
UNKNOWN = b'{"error":{"message":"There is nothing here.","type":"invalid_request_error"}}'
MAX_BODY = 1024 * 1024  # bytes


class Seat(Protocol):
    """What the admin listener is given: sockets that listen, and the token's SHA-256 in hex."""

    @property
    def sockets(self) -> Sequence[socket.socket]:
        """The sockets to serve on."""

    @property
    def token_sha256(self) -> str:
        """The digest of the only token."""


def create_admin(token_sha256: str) -> QuartTrio:
    """Build the application; everything but `/healthz` wants `Authorization: Bearer TOKEN`."""
    app = QuartTrio("trio_gateway_admin", static_folder=None)
    app.config["MAX_CONTENT_LENGTH"] = MAX_BODY

    @app.before_request
    async def require_token() -> Response | None:
        if request.path == "/healthz" or _proves(request.scope["headers"], token_sha256):
            return None
        return Response(REFUSED, 401, {"www-authenticate": "Bearer"}, content_type=JSON)

    @app.get("/healthz")
    async def alive() -> Response:
        return Response("ok", 200, content_type="text/plain; charset=utf-8")

    @app.get("/admin/v1/status")
    async def status() -> Response:
        answer = {"version": __version__, "supervisor_pid": os.getpid()}
        return Response(orjson.dumps(answer), 200, content_type=JSON)

    @app.errorhandler(404)
    async def nothing(_: Exception) -> Response:
        return Response(UNKNOWN, 404, content_type=JSON)

    return app


def _proves(headers: Any, token_sha256: str) -> bool:
    try:
        token = presented_key(headers)
    except Unauthenticated:
        return False
    digest = hashlib.sha256((token or "").encode("latin-1")).hexdigest()
    return token is not None and hmac.compare_digest(digest, token_sha256)


async def serve_admin(
    seat: Seat, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
) -> None:
    """Serve on the seat's sockets until cancelled."""
    config = Config()
    # Hypercorn closes what it is given, and the seat is to be served on again after a failure.
    config.bind = [f"fd://{os.dup(sock.fileno())}" for sock in seat.sockets]
    config.accesslog = None
    config.loglevel = "WARNING"
    config.include_server_header = False
    async with trio.open_nursery() as nursery:
        app = create_admin(seat.token_sha256)
        never = trio.sleep_forever
        await nursery.start(partial(serve, app, config, shutdown_trigger=never, mode="asgi"))
        task_status.started()
