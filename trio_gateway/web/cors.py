"""Cross-origin calls: refused unless the operator listed the origin."""

from __future__ import annotations

import re
from typing import Any

ALLOWED_HEADERS = b"authorization, content-type, x-api-key, idempotency-key"
# SDKs in a browser send headers of their own. None is ever acted upon or passed on, so
# whatever a page of a listed origin asks to send, it may.
_NAMES = re.compile(rb"[A-Za-z0-9-]{1,64}( ?, ?[A-Za-z0-9-]{1,64}){0,63}")
EXPOSED_HEADERS = "x-request-id, retry-after, idempotent-replayed"
MAX_AGE = b"600"


class Cors:
    """The origins of CORS_ORIGINS; `*` is every origin."""

    def __init__(self, setting: str) -> None:
        """Read the setting: origins with commas between."""
        self._origins = {part.strip() for part in setting.split(",") if part.strip()}

    def allows(self, origin: str | None) -> bool:
        """Whether pages of this origin may call."""
        return origin is not None and bool({origin, "*"} & self._origins)

    def preflight(self, scope: dict[str, Any]) -> list[tuple[bytes, bytes]] | None:
        """Return the headers that answer a preflight, None where this is none or is refused."""
        if scope["method"] != "OPTIONS" or not self._origins:
            return None
        headers = dict(scope["headers"])
        origin = headers.get(b"origin")
        if b"access-control-request-method" not in headers or origin is None:
            return None
        if not self.allows(origin.decode("latin-1")):
            return None
        wanted = headers.get(b"access-control-request-headers", b"")
        return [
            (b"access-control-allow-origin", origin),
            (b"access-control-allow-methods", b"GET, POST, DELETE"),
            (
                b"access-control-allow-headers",
                wanted if _NAMES.fullmatch(wanted) else ALLOWED_HEADERS,
            ),
            (b"access-control-max-age", MAX_AGE),
            (b"vary", b"origin"),
        ]

    def headers(self, origin: str | None) -> dict[str, str]:
        """Return what an answer to a page of this origin carries."""
        if origin is None or not self.allows(origin):
            return {}
        return {
            "access-control-allow-origin": origin,
            "access-control-expose-headers": EXPOSED_HEADERS,
            "vary": "origin",
        }
