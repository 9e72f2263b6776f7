"""The admin listener's application: API, dashboard and metrics behind one guard."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from quart import Response, request
from quart_trio import QuartTrio

from trio_gateway.web.admin import metrics, oidc, status
from trio_gateway.web.admin.api.routes import register_api
from trio_gateway.web.admin.connection import AdminConnection, AdminHandshake
from trio_gateway.web.admin.cookies import over_https
from trio_gateway.web.admin.dashboard.dashboard import add_dashboard
from trio_gateway.web.admin.dashboard.failures import failure_page
from trio_gateway.web.admin.errors import error_response
from trio_gateway.web.admin.guard import for_machines, guard
from trio_gateway.web.admin.intake import AdminRequest, take_in

if TYPE_CHECKING:
    from trio_gateway.web.admin.office import Office

MAX_BODY = 1024 * 1024  # bytes
HEADERS = {
    "cache-control": "no-store",
    "content-security-policy": "default-src 'none'; frame-ancestors 'none'",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
}


class AdminApp(QuartTrio):
    """A Quart-Trio application; `office` is set by whoever starts it."""

    asgi_http_class = AdminConnection
    asgi_websocket_class = AdminHandshake
    request_class = AdminRequest
    office: Office

    def begin_drain(self) -> None:
        """End what streams."""
        self.office.leaving.set()

    def log_exception(self, exception_info: Any) -> None:
        """Keep Quart's tracebacks, with their texts, out of the log."""


def create_admin() -> AdminApp:
    """Build the application; its lifespan is up to the caller."""
    app = AdminApp("trio_gateway.web.admin", static_folder=None, template_folder=None)
    app.config["MAX_CONTENT_LENGTH"] = MAX_BODY
    app.config["RESPONSE_TIMEOUT"] = None  # live numbers are a stream; all else is bounded itself
    app.before_request(guard)
    app.register_blueprint(status.blueprint)
    register_api(app)
    app.register_blueprint(metrics.blueprint)
    app.register_blueprint(oidc.blueprint)
    add_dashboard(app)
    app.register_error_handler(Exception, _render)
    app.after_request(_secure)
    return app


async def _render(error: Exception) -> Response:
    if for_machines(request.path):
        return error_response(error)
    return await failure_page(error)


async def _secure(response: Response) -> Response:
    for name, value in HEADERS.items():
        response.headers.setdefault(name, value)
    if over_https():
        response.headers["strict-transport-security"] = "max-age=31536000"
    if not await take_in():
        response.headers["connection"] = "close"
    return response
