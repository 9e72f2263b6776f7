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
    "/v1/files": ("GET", "POST"),
    "/v1/batches": ("GET", "POST"),
} | dict.fromkeys(INFERENCE, ("POST",))

# A model's name in a path: the bytes of a name, with `/` and `:` plain or percent-encoded.
_MODEL = r"(?:[A-Za-z0-9._:/-]|%2[Ff]|%3[Aa]){1,700}"
_ID = r"[A-Za-z0-9_-]{1,128}"
MODEL_ROUTE = "/v1/models/{id}"
NAMED: dict[str, tuple[str, ...]] = {
    MODEL_ROUTE: ("GET",),
    "/v1/files/{id}": ("GET", "DELETE"),
    "/v1/files/{id}/content": ("GET",),
    "/v1/batches/{id}": ("GET",),
    "/v1/batches/{id}/cancel": ("POST",),
}
_PATTERNS = {
    route: re.compile(route.replace("{id}", f"({_MODEL if route == MODEL_ROUTE else _ID})"))
    for route in NAMED
}

_DIGITS = re.compile(rb"[0-9]{1,19}")


def find(raw_path: str) -> tuple[str, str] | None:
    """Return the route of a raw path and the id in it, None for one outside the table."""
    if raw_path in EXACT:
        return raw_path, ""
    for route, pattern in _PATTERNS.items():
        match = pattern.fullmatch(raw_path)
        if match is not None:
            fine = route != MODEL_ROUTE or _names_model(match[1])
            return (route, match[1]) if fine else None
    return None


def methods(raw_path: str) -> tuple[str, ...] | None:
    """Return the methods of a raw path, None for one outside the table."""
    found = find(raw_path)
    return None if found is None else EXACT.get(found[0]) or NAMED[found[0]]


def route_of(raw_path: str) -> str:
    """Name the route of a raw path that passed the screen."""
    found = find(raw_path)
    assert found is not None  # noqa: S101 - the screen asked before
    return found[0]


def id_in(raw_path: str) -> str:
    """Return the id that a raw path names, as it is written there."""
    found = find(raw_path)
    return "" if found is None else found[1]


def _names_model(name: str) -> bool:
    return not any(part in {"", ".", ".."} for part in re.split(r"/|%2[Ff]", name))


def screen(scope: dict[str, Any], raw_path: str) -> GatewayError | None:
    """Return why a request is refused before anything of it is looked at, or None.

    The route comes first, then the method, then the framing.
    """
    allowed = methods(raw_path)
    if allowed is None:
        return EndpointNotAllowed()
    if scope["method"] not in allowed:
        return MethodNotAllowed(", ".join(allowed))
    return framing(scope["headers"])


def framing(headers: list[tuple[bytes, bytes]]) -> GatewayError | None:
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
