"""The public application: the table of routes, and the one place where errors are rendered."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import structlog
from quart import Response, current_app, request
from quart_trio import QuartTrio
from werkzeug.exceptions import HTTPException

from trio_gateway.core.errors import CallTooLarge, EndpointNotAllowed, GatewayError
from trio_gateway.web import batches, files, health, inference, metadata
from trio_gateway.web.connection import Connection, Handshake, Request
from trio_gateway.web.replies import error_reply
from trio_gateway.web.routes import INFERENCE, MODEL_ROUTE, route_of

if TYPE_CHECKING:
    from trio_gateway.web.gateway import Gateway

log = structlog.get_logger()

HANDLERS: dict[str, Any] = {
    "/": health.root,
    "/healthz": health.alive,
    "/readyz": health.ready,
    "/api/tags": metadata.tags,
    "/api/ps": metadata.running,
    "/api/version": metadata.version,
    "/api/show": metadata.show,
    "/v1/models": metadata.models,
    MODEL_ROUTE: metadata.model,
    "/v1/files": files.collection,
    "/v1/files/{id}": files.one,
    "/v1/files/{id}/content": files.content,
    "/v1/batches": batches.collection,
    "/v1/batches/{id}": batches.one,
    "/v1/batches/{id}/cancel": batches.cancel,
} | dict.fromkeys(INFERENCE, inference.infer)


class GatewayApp(QuartTrio):
    """A Quart-Trio application; `gateway` is set by whoever starts it."""

    asgi_http_class = Connection
    asgi_websocket_class = Handshake
    request_class = Request
    gateway: Gateway

    def create_url_adapter(self, _: Any) -> None:
        """Route nothing on the decoded path, which many spellings reach."""

    async def dispatch_request(self, _: Any = None) -> Any:
        """Call the handler of the raw path, the very bytes that were screened."""
        asked = cast("Request", request)
        handler: Any = self.view_functions[route_of(asked.raw_path)]
        return await handler()

    def log_exception(self, exception_info: Any) -> None:
        """Keep Quart's tracebacks, with their texts, out of the log."""
        log.debug("quart_failed", exc_info=exception_info[1])

    def begin_drain(self) -> None:
        """Refuse new calls; cut what still runs when the drain time is over."""
        self.gateway.begin_drain()

    def hasten_drain(self) -> None:
        """Cut what still runs now."""
        self.gateway.cut_all()


def create_app() -> GatewayApp:
    """Build the application; its lifespan is up to the caller."""
    app = GatewayApp("trio_gateway", static_folder=None)
    # Long streams are the rule here, and the exchange has limits of its own.
    app.config["RESPONSE_TIMEOUT"] = None
    app.view_functions.update(HANDLERS)
    app.register_error_handler(GatewayError, _render)
    app.register_error_handler(HTTPException, _render_http)
    app.register_error_handler(Exception, _render_bug)
    app.after_request(_finish)
    return app


async def _render(error: GatewayError) -> Response:
    asked = cast("Request", request)
    gateway = cast("GatewayApp", current_app).gateway
    gateway.refused_call(error, asked)
    body, headers = error_reply(asked.raw_path, error)
    return Response(body, error.status, headers)


async def _render_http(error: HTTPException) -> Response:
    # Quart's own: a body that grew too large while nobody read it.
    return await _render(CallTooLarge() if error.code == 413 else EndpointNotAllowed())


async def _render_bug(error: Exception) -> Response:
    log.error("request_failed", exc_info=error)
    return await _render(GatewayError())


async def _finish(response: Response) -> Response:
    asked = cast("Request", request)
    response.headers["x-request-id"] = asked.request_id
    if cast("GatewayApp", current_app).gateway.draining and asked.http_version.startswith("1"):
        # whoever keeps the connection is to ask elsewhere from now on
        response.headers["connection"] = "close"
    if (origin := asked.headers.get("origin")) is not None:
        cors = cast("GatewayApp", current_app).gateway.cors
        response.headers.update(cors.headers(origin))
    return response
