"""The closed surface: raw paths, compared byte for byte, and the methods of each.

Quart routes on the decoded path, which many spellings reach; nothing passes here but the
exact bytes of this table.
"""

from __future__ import annotations

import re
from typing import Any

from trio_gateway.core.errors import EndpointNotAllowed, GatewayError, InvalidCall, MethodNotAllowed

INFERENCE = frozenset(
    {
        "/api/chat",
        "/api/generate",
        "/api/embed",
        "/api/embeddings",
        "/v1/chat/completions",
        "/v1/completions",
        "/v1/embeddings",
    }
)
EXACT: dict[str, tuple[str, ...]] = {
    "/": ("GET", "HEAD"),
    "/healthz": ("GET",),
    "/readyz": ("GET",),
    "/api/tags": ("GET",),
    "/api/ps": ("GET",),
    "/api/version": ("GET",),
    "/api/show": ("POST",),
    "/v1/models": ("GET",),
} | dict.fromkeys(INFERENCE, ("POST",))

# A model's name in a path: the bytes of a name, with `/` and `:` plain or percent-encoded.
MODEL_PATH = re.compile(r"/v1/models/((?:[A-Za-z0-9._:/-]|%2[Ff]|%3[Aa]){1,700})")
MODEL_METHODS = ("GET",)
MODEL_ROUTE = "/v1/models/{id}"

_DIGITS = re.compile(rb"[0-9]{1,19}")


def methods(raw_path: str) -> tuple[str, ...] | None:
    """Return the methods of a raw path, None for one outside the table."""
    found = EXACT.get(raw_path)
    if found is None and _names_model(raw_path):
        return MODEL_METHODS
    return found


def route_of(raw_path: str) -> str:
    """Name the route of a raw path that passed the screen."""
    return raw_path if raw_path in EXACT else MODEL_ROUTE


def _names_model(raw_path: str) -> bool:
    match = MODEL_PATH.fullmatch(raw_path)
    return match is not None and not any(
        part in {"", ".", ".."} for part in re.split(r"/|%2[Ff]", match[1])
    )


def screen(scope: dict[str, Any], raw_path: str) -> GatewayError | None:
    """Return why a request is refused before anything of it is looked at, or None.

    The route comes first, then the method, then the framing.
    """
    allowed = methods(raw_path)
    if allowed is None:
        return EndpointNotAllowed()
    if scope["method"] not in allowed:
        return MethodNotAllowed(", ".join(allowed))
    return _framing(scope["headers"])


def _framing(headers: list[tuple[bytes, bytes]]) -> GatewayError | None:
    """Refuse what two readers of one connection could read differently."""
    seen: dict[bytes, int] = {}
    for name, value in headers:
        seen[name] = seen.get(name, 0) + 1
        if name == b"content-length" and not _DIGITS.fullmatch(value):
            return InvalidCall("Content-Length is malformed.")
        if name == b"transfer-encoding" and value.lower() != b"chunked":
            return InvalidCall("Transfer-Encoding is not supported.")
    if b"content-length" in seen and b"transfer-encoding" in seen:
        return InvalidCall("Content-Length and Transfer-Encoding exclude each other.")
    for name in (b"authorization", b"x-api-key", b"content-length", b"transfer-encoding"):
        if seen.get(name, 0) > 1:
            return InvalidCall(f"The header {name.decode()} may appear once only.")
    return None
