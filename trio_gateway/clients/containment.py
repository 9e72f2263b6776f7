"""One connection's failure stays its own.

Under hypercorn 0.18 some bytes make the code that reads a connection raise: a path or a method
over HTTP/2 that is not ASCII, or settings in an h2c upgrade that are not base64. The exception
leaves the connection's task and ends the server, and every call on it; no application sees it
come. The seam is TCPServer.run, which has closed its socket by the time that it raises.
"""

from __future__ import annotations

from functools import wraps

import structlog
from hypercorn.trio.tcp_server import TCPServer

log = structlog.get_logger()


def contain() -> None:
    """Let a connection that fails end alone; does nothing where that is done already."""
    serve = TCPServer.run
    if hasattr(serve, "__wrapped__"):
        return

    @wraps(serve)
    async def run(self: TCPServer) -> None:
        try:
            await serve(self)
        except* Exception as group:  # noqa: BLE001 - whatever it is, it concerns this client alone
            # The texts of these hold what the client sent.
            log.warning("connection_failed", errors=sorted(_kinds(group)))

    TCPServer.run = run  # type: ignore[method-assign]


def _kinds(error: BaseException) -> set[str]:
    if isinstance(error, BaseExceptionGroup):
        return set().union(*map(_kinds, error.exceptions))
    return {type(error).__name__}
