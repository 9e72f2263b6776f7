"""A chat answer as a stream of `chat.completion.chunk` events.

A token's event differs from the last one only in its text, so everything around the text is
encoded once, when the stream opens.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import orjson

from trio_gateway.dialects import sse
from trio_gateway.dialects.openai_logprobs import shape_tokens
from trio_gateway.dialects.openai_rendering import (
    FINGERPRINT,
    ChatWishes,
    Streamed,
    finish,
    identify,
    usage,
)
from trio_gateway.dialects.openai_tool_calls import Numbering

if TYPE_CHECKING:
    from trio_gateway.core.domain import Call, Chunk

_ROLE = b'"role":"assistant",'


class ChatStream(Streamed):
    """Renders the chunks of one streamed chat call."""

    def __init__(self, call: Call, *, request_id: str, created: float) -> None:
        """Open the stream; `created`, in unix seconds, and the id stay the same throughout."""
        super().__init__()
        self._wishes: ChatWishes = call.rendering
        self._calls = Numbering(single=self._wishes.single_tool_call)
        self._opened = False
        common = {
            "id": identify("chatcmpl-", request_id),
            "object": "chat.completion.chunk",
            "created": int(created),
            "model": call.requested,
            "system_fingerprint": FINGERPRINT,
        }
        self._common = b"data: " + orjson.dumps(common)[:-1]
        self._head = self._common + b',"choices":[{"index":0,"delta":{'
        self._close = (b',"usage":null' if self._wishes.include_usage else b"") + b"}\n\n"
        self._tail = b'},"logprobs":null,"finish_reason":null}]' + self._close
        self._text = self._head + b'"content":'
        self._reasoning = self._head + b'"reasoning":'

    def chunk(self, chunk: Chunk) -> bytes:
        """Encode one chunk; the short way is taken by every plain token but the first."""
        if not self._opened or chunk.done or chunk.tool_calls or self._wishes.logprobs:
            return self._long_way(chunk)
        if chunk.thinking:
            text = orjson.dumps(chunk.thinking)
            event = self._reasoning + text + b',"reasoning_content":' + text + self._tail
            if not chunk.content:
                return event
            return event + self._text + orjson.dumps(chunk.content) + self._tail
        if chunk.content:
            return self._text + orjson.dumps(chunk.content) + self._tail
        return b""

    def _long_way(self, chunk: Chunk) -> bytes:
        logprobs = chunk.logprobs if self._wishes.logprobs else None
        deltas = self._deltas(chunk)
        # Log probabilities ride on a delta; an answer without any still owes its role.
        if not deltas and (logprobs or (chunk.done and not self._opened)):
            deltas = [b'"content":""']
        events = []
        for delta in deltas:
            shaped = orjson.dumps(shape_tokens(logprobs)) if logprobs else b"null"
            events.append(self._event(delta, shaped))
            logprobs = None
        if chunk.done:
            events.append(self._ending(chunk))
        return b"".join(events)

    def _deltas(self, chunk: Chunk) -> list[bytes]:
        deltas = []
        if chunk.thinking:
            text = orjson.dumps(chunk.thinking)
            deltas.append(b'"reasoning":' + text + b',"reasoning_content":' + text)
        if chunk.content:
            deltas.append(b'"content":' + orjson.dumps(chunk.content))
        first = self._calls.count
        for index, shaped in enumerate(self._calls.take(chunk.tool_calls), start=first):
            deltas.append(self._call_delta(index, shaped))
        return deltas

    def _call_delta(self, index: int, shaped: dict[str, Any]) -> bytes:
        if self._wishes.legacy_function:
            return b'"function_call":' + orjson.dumps(shaped["function"])
        return b'"tool_calls":[' + orjson.dumps({"index": index, **shaped}) + b"]"

    def _event(self, delta: bytes, logprobs: bytes = b"null", reason: bytes = b"null") -> bytes:
        role = b"" if self._opened else _ROLE
        self._opened = True
        rest = b'},"logprobs":' + logprobs + b',"finish_reason":' + reason + b"}]"
        return self._head + role + delta + rest + self._close

    def _ending(self, chunk: Chunk) -> bytes:
        word = "function_call" if self._wishes.legacy_function else "tool_calls"
        reason = finish(chunk.done_reason, called=word if self._calls.count else None)
        ending = self._event(b"", reason=orjson.dumps(reason))
        if self._wishes.include_usage:
            counts = orjson.dumps(usage(chunk))
            ending += self._common + b',"choices":[],"usage":' + counts + b"}\n\n"
        return ending + sse.DONE
