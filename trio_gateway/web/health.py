"""Alive and ready: for load balancers, without a key, without a version or a secret."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from quart import Response, current_app

if TYPE_CHECKING:
    from trio_gateway.web.gateway import Gateway

TEXT = "text/plain; charset=utf-8"


async def root() -> Response:
    """Answer as Ollama's root does; clients look for a 200 here."""
    return Response("trio-gateway is running", 200, content_type=TEXT)


async def alive() -> Response:
    """Say that the process serves."""
    return Response("ok", 200, content_type=TEXT)


async def ready() -> Response:
    """Say whether a call could be admitted now, and its key's revocation would be heard of."""
    gateway = cast("Gateway", current_app.gateway)  # type: ignore[attr-defined]
    missing = gateway.missing()
    if not missing:
        return Response("ready", 200, content_type=TEXT)
    return Response(
        f"not ready: {', '.join(missing)}", 503, {"retry-after": "1"}, content_type=TEXT
    )
