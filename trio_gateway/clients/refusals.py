"""What upstream's refusal means to the caller, in our own words; its words are never passed on."""

from __future__ import annotations

import re

from trio_gateway.core.errors import (
    GatewayError,
    InvalidCall,
    ModelNotFound,
    UpstreamError,
    UpstreamUnavailable,
)

RETRY_AFTER = 2.0  # seconds, where upstream names none
RETRY_AFTER_MOST = 300

TOO_LONG = re.compile(
    rb"context (length|size|window)|exceed_context_size|exceeds? the available context"
)
LACKING = re.compile(
    rb"does not support \W*"
    rb"(chat|generate|thinking|tools|insert|vision|images?|audio|embeddings?|completion)"
)
CAPABILITY = {"generate": "completion", "image": "images", "embedding": "embeddings"}


def refusal(status: int, words: bytes, retry_after: str | None) -> GatewayError:
    """Return the error for a status other than 200.

    `words` is the body of a 400 and only recognized, `retry_after` the header's value.
    """
    if status == 400:
        return _misuse(words.lower())
    if status == 404:
        return ModelNotFound()
    if status in {429, 503}:
        return UpstreamUnavailable(retry_after=_seconds(retry_after or ""))
    return UpstreamError()


def _misuse(words: bytes) -> InvalidCall:
    if lacking := LACKING.search(words):
        name = lacking[1].decode()
        message = f"The model does not support {CAPABILITY.get(name, name)}."
        return InvalidCall(message, param="model")
    if TOO_LONG.search(words):
        message = "The request is longer than the model's context."
        return InvalidCall(message, code="context_length_exceeded")
    return InvalidCall("The model server refused the request as not valid.")


def _seconds(value: str) -> float:
    if value.isascii() and value.isdigit() and len(value) < 7:
        return float(min(max(int(value), 1), RETRY_AFTER_MOST))
    return RETRY_AFTER
