"""Headers and bodies that every answer shares."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from trio_gateway.core.errors import LimitReached, MethodNotAllowed, Unauthenticated
from trio_gateway.dialects.table import encode_error

if TYPE_CHECKING:
    from trio_gateway.core.domain import Standing, Window
    from trio_gateway.core.errors import GatewayError

JSON = "application/json; charset=utf-8"
BUSY_RETRY = 1  # seconds; what a 503 says when nothing better is known


def span(seconds: float) -> str:
    """Write a duration as OpenAI does: `12ms`, `1.5s`, `6m0s`, `2h0m3s`."""
    if seconds < 1:
        return f"{max(0, round(seconds * 1000))}ms"
    whole = math.ceil(seconds)
    hours, rest = divmod(whole, 3600)
    minutes, left = divmod(rest, 60)
    if hours:
        return f"{hours}h{minutes}m{left}s"
    return f"{minutes}m{left}s" if minutes else f"{left}s"


def standing_headers(standing: Standing) -> dict[str, str]:
    """Say what the caller has left; a limit that is not set has no header."""
    headers: dict[str, str] = {}
    windows = (
        ("x-ratelimit-{}-requests", standing.requests),
        ("x-ratelimit-{}-tokens", standing.tokens),
        ("x-budget-{}-tokens", standing.budget),
    )
    for name, window in windows:
        if window is not None:
            _add(headers, name, window)
    return headers


def _add(headers: dict[str, str], name: str, window: Window) -> None:
    headers[name.format("limit")] = str(window.limit)
    headers[name.format("remaining")] = str(window.remaining)
    if window.reset is not None:
        headers[name.format("reset")] = span(window.reset)


def error_reply(raw_path: str, error: GatewayError) -> tuple[bytes, dict[str, str]]:
    """Return the body and the headers of an error, without the request id."""
    headers = {"content-type": JSON}
    if isinstance(error, LimitReached) and error.standing is not None:
        headers |= standing_headers(error.standing)
    if error.retry_after is not None:
        headers["retry-after"] = str(max(1, math.ceil(error.retry_after)))
    elif error.status == 503:
        headers["retry-after"] = str(BUSY_RETRY)
    if error.should_retry is not None:
        headers["x-should-retry"] = "true" if error.should_retry else "false"
    if isinstance(error, MethodNotAllowed):
        headers["allow"] = error.allow
    if isinstance(error, Unauthenticated):
        headers["www-authenticate"] = "Bearer"
    return encode_error(raw_path, error), headers
