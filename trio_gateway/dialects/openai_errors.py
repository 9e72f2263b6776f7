"""Errors in OpenAI's shape: a whole body, or the last event of a broken stream."""

from __future__ import annotations

from typing import TYPE_CHECKING

import orjson

from trio_gateway.dialects import sse

if TYPE_CHECKING:
    from trio_gateway.core.errors import GatewayError


def encode_error(error: GatewayError) -> bytes:
    """Encode `{"error": {"message", "type", "param", "code"}}`; never more than the error says."""
    shape = {
        "message": error.message,
        "type": error.type,
        "param": error.param,
        "code": error.code,
    }
    return orjson.dumps({"error": shape})


def encode_event(error: GatewayError) -> bytes:
    """Encode the last event of a broken stream; nothing follows it, least of all `[DONE]`."""
    return sse.event(encode_error(error))
