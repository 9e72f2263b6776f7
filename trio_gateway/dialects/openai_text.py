"""A /v1/completions answer: one `text_completion` document, or a stream of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import orjson

from trio_gateway.core.errors import UpstreamError
from trio_gateway.dialects import sse
from trio_gateway.dialects.openai_logprobs import TextLogprobs
from trio_gateway.dialects.openai_rendering import (
    FINGERPRINT,
    CompletionWishes,
    Streamed,
    Whole,
    finish,
    identify,
    usage,
)

if TYPE_CHECKING:
    from trio_gateway.core.domain import Call, Chunk


def _common(call: Call, request_id: str, created: float) -> dict[str, Any]:
    return {
        "id": identify("cmpl-", request_id),
        "object": "text_completion",
        "created": int(created),
        "model": call.requested,
        "system_fingerprint": FINGERPRINT,
    }


class TextStream(Streamed):
    """Renders the chunks of one streamed completion; reasoning has no place in its shape."""

    def __init__(self, call: Call, *, request_id: str, created: float) -> None:
        """Open the stream; `created`, in unix seconds, and the id stay the same throughout."""
        super().__init__()
        wishes: CompletionWishes = call.rendering
        self._include_usage = wishes.include_usage
        self._columns = None if wishes.logprobs is None else TextLogprobs(wishes.logprobs)
        self._common = b"data: " + orjson.dumps(_common(call, request_id, created))[:-1]
        self._head = self._common + b',"choices":[{"index":0,"text":'
        self._close = (b',"usage":null' if self._include_usage else b"") + b"}\n\n"
        self._tail = b',"logprobs":null,"finish_reason":null}]' + self._close

    def chunk(self, chunk: Chunk) -> bytes:
        """Encode one chunk; a plain token's event differs from the last only in its text."""
        if not chunk.done and self._columns is None:
            return self._head + orjson.dumps(chunk.content) + self._tail if chunk.content else b""
        event = b""
        if chunk.content or (self._columns is not None and chunk.logprobs):
            event = self._event(chunk)
        return event + self._ending(chunk) if chunk.done else event

    def _event(self, chunk: Chunk) -> bytes:
        if self._columns is None or not chunk.logprobs:
            return self._head + orjson.dumps(chunk.content) + self._tail
        shaped = orjson.dumps(self._columns.shape(chunk.logprobs))
        rest = b',"logprobs":' + shaped + b',"finish_reason":null}]' + self._close
        return self._head + orjson.dumps(chunk.content) + rest

    def _ending(self, chunk: Chunk) -> bytes:
        reason = orjson.dumps(finish(chunk.done_reason))
        rest = b'"","logprobs":null,"finish_reason":' + reason + b"}]"
        ending = self._head + rest + self._close
        if self._include_usage:
            counts = orjson.dumps(usage(chunk))
            ending += self._common + b',"choices":[],"usage":' + counts + b"}\n\n"
        return ending + sse.DONE


class TextAnswer(Whole):
    """Renders the chunks of one completion that is not streamed."""

    def __init__(self, call: Call, *, request_id: str, created: float) -> None:
        """Open the answer; `created` is in unix seconds."""
        self._wishes: CompletionWishes = call.rendering
        self._common = _common(call, request_id, created)
        self._text: list[str] = []
        self._logprobs: list[dict[str, Any]] = []
        self._last: Chunk | None = None

    def absorb(self, chunk: Chunk) -> None:
        """Add one chunk to the answer."""
        self._text.append(chunk.content)
        self._logprobs += chunk.logprobs or []
        if chunk.done:
            self._last = chunk

    def body(self) -> bytes:
        """Encode the answer, or raise UpstreamError where upstream never finished it."""
        if self._last is None:
            raise UpstreamError
        asked = self._wishes.logprobs
        choice = {
            "text": "".join(self._text),
            "index": 0,
            "logprobs": None if asked is None else TextLogprobs(asked).shape(self._logprobs),
            "finish_reason": finish(self._last.done_reason),
        }
        return orjson.dumps({**self._common, "choices": [choice], "usage": usage(self._last)})
