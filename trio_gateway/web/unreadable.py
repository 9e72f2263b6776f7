"""What is said to a request that is not HTTP, which no handler ever sees."""

from __future__ import annotations

from trio_gateway.core.errors import CallerError
from trio_gateway.pipeline.admission import new_request_id
from trio_gateway.web.replies import error_reply

TEXTS = {
    431: "The headers or the frames of the body are too long.",
    501: "This Transfer-Encoding is not supported.",
}


def unreadable(status: int, raw_path: str) -> tuple[list[tuple[bytes, bytes]], bytes]:
    """Return the headers and the body of an answer; `raw_path` is empty where none was read."""
    error = CallerError(TEXTS.get(status, "The request is not valid HTTP/1.1."))
    body, headers = error_reply(raw_path, error)
    headers["x-request-id"] = new_request_id()
    return [(name.encode(), value.encode()) for name, value in headers.items()], body
