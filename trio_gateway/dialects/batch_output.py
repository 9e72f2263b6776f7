"""Lines of a batch's output and error files; no line holds a line break."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import orjson

from trio_gateway.dialects.openai_errors import encode_error

if TYPE_CHECKING:
    from trio_gateway.core.errors import GatewayError


@dataclass(frozen=True, slots=True)
class Reason:
    """Why a request has no answer at all."""

    code: str
    message: str


EXPIRED = Reason(
    "batch_expired",
    "This request could not be executed before the completion window expired.",
)
CANCELLED = Reason(
    "batch_cancelled",
    "This request was not executed because the batch was cancelled.",
)
FAILED = Reason(
    "batch_failed",
    "This request was given up: the server stopped each time while it was being executed.",
)
LOST = Reason(
    "batch_failed",
    "This request could not be executed because the batch's input could no longer be read.",
)


def result_line(custom_id: str, request_id: str, body: bytes) -> bytes:
    """Encode a request that was answered with 200.

    `body` is one JSON value, embedded as it stands; a line break can only be a space in it.
    """
    fragment = orjson.Fragment(body.replace(b"\n", b" "))
    response = {"status_code": 200, "request_id": request_id, "body": fragment}
    return _line(custom_id, request_id, response, None)


def failure_line(custom_id: str, request_id: str, error: GatewayError) -> bytes:
    """Encode a request that was answered with an error: as a response, and by its name."""
    response = {
        "status_code": error.status,
        "request_id": request_id,
        "body": orjson.Fragment(encode_error(error)),
    }
    return _line(custom_id, request_id, response, (error.code, error.message))


def unrun_line(custom_id: str, unique: str, reason: Reason) -> bytes:
    """Encode a request without an answer; `unique` is any id of it, the same at each call."""
    return _line(custom_id, unique, None, (reason.code, reason.message))


def _line(
    custom_id: str,
    unique: str,
    response: dict[str, Any] | None,
    error: tuple[str, str] | None,
) -> bytes:
    shape = {
        "id": "batch_req_" + unique.removeprefix("req_").removeprefix("batch_"),
        "custom_id": custom_id,
        "response": response,
        "error": None if error is None else {"code": error[0], "message": error[1]},
    }
    return orjson.dumps(shape)
