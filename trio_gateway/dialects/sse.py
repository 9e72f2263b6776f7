"""Server-sent events, as the OpenAI clients read them: one `data:` line, then a blank one."""

from __future__ import annotations

CONTENT_TYPE = "text/event-stream"
DONE = b"data: [DONE]\n\n"
KEEPALIVE = b": waiting\n\n"  # a comment; every client skips it


def event(payload: bytes) -> bytes:
    """Frame one JSON document, which must not hold a raw newline."""
    return b"data: " + payload + b"\n\n"
