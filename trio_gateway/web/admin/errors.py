"""The admin listener's errors: one JSON shape, and the status of every error it can meet."""

from __future__ import annotations

import structlog
from quart import Response
from werkzeug.exceptions import HTTPException

from trio_gateway.clients.postgres import NotMigrated
from trio_gateway.core.errors import (
    BodyTimeout,
    CallTooLarge,
    Conflict,
    GatewayError,
    InvalidCall,
    MethodNotAllowed,
    NotFound,
    StoreUnavailable,
)
from trio_gateway.services.account_rows import NotFound as NoSuchRow
from trio_gateway.services.account_rows import Refused, Taken, Unfit
from trio_gateway.web.replies import error_reply

log = structlog.get_logger()

# What the error shape is asked for: the public listener's OpenAI dialect has the same one.
DIALECT = "/v1/admin"


def as_gateway_error(error: Exception) -> GatewayError:
    """Return the error that the caller is to see; what was not foreseen says nothing."""
    if isinstance(error, NotMigrated):
        return StoreUnavailable("The database is not at this release; run migrations.")
    if isinstance(error, GatewayError):
        return error
    if isinstance(error, NoSuchRow):
        return NotFound(error.message, param=error.param)
    if isinstance(error, Taken | Unfit):
        code = "already_exists" if isinstance(error, Taken) else None
        return Conflict(error.message, param=error.param, code=code)
    if isinstance(error, Refused):
        return InvalidCall(error.message, param=error.param)
    if isinstance(error, HTTPException):
        return _of_http(error)
    log.error("admin_request_failed", exc_info=error)
    return GatewayError()


def error_response(error: Exception) -> Response:
    """Render an error as JSON."""
    shown = as_gateway_error(error)
    body, headers = error_reply(DIALECT, shown)
    return Response(body, shown.status, headers)


def _of_http(error: HTTPException) -> GatewayError:
    if error.code == 413:
        return CallTooLarge()
    if error.code == 408:
        return BodyTimeout()
    if error.code == 405:
        allowed = getattr(error, "valid_methods", None) or ()
        return MethodNotAllowed(", ".join(sorted(allowed)))
    if error.code == 404:
        return NotFound("There is nothing here.", param=None)
    return InvalidCall()
