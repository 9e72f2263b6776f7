"""A chat answer as one `chat.completion` document."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import orjson

from trio_gateway.core.errors import UpstreamError
from trio_gateway.dialects.openai_logprobs import shape_tokens
from trio_gateway.dialects.openai_rendering import (
    FINGERPRINT,
    ChatWishes,
    Whole,
    finish,
    identify,
    usage,
)
from trio_gateway.dialects.openai_tool_calls import Numbering

if TYPE_CHECKING:
    from trio_gateway.core.domain import Call, Chunk


class ChatAnswer(Whole):
    """Renders the chunks of one chat call that is not streamed."""

    def __init__(self, call: Call, *, request_id: str, created: float) -> None:
        """Open the answer; `created` is in unix seconds."""
        self._wishes: ChatWishes = call.rendering
        self._common = {
            "id": identify("chatcmpl-", request_id),
            "object": "chat.completion",
            "created": int(created),
            "model": call.requested,
            "system_fingerprint": FINGERPRINT,
        }
        self._numbering = Numbering(single=self._wishes.single_tool_call)
        self._calls: list[dict[str, Any]] = []
        self._content: list[str] = []
        self._thinking: list[str] = []
        self._logprobs: list[dict[str, Any]] = []
        self._last: Chunk | None = None

    def absorb(self, chunk: Chunk) -> None:
        """Add one chunk to the answer."""
        self._content.append(chunk.content)
        self._thinking.append(chunk.thinking)
        self._calls += self._numbering.take(chunk.tool_calls)
        self._logprobs += chunk.logprobs or []
        if chunk.done:
            self._last = chunk

    def body(self) -> bytes:
        """Encode the answer, or raise UpstreamError where upstream never finished it."""
        if self._last is None:
            raise UpstreamError
        word = "function_call" if self._wishes.legacy_function else "tool_calls"
        choice = {
            "index": 0,
            "message": self._message(),
            "logprobs": shape_tokens(self._logprobs) if self._wishes.logprobs else None,
            "finish_reason": finish(self._last.done_reason, called=word if self._calls else None),
        }
        return orjson.dumps({**self._common, "choices": [choice], "usage": usage(self._last)})

    def _message(self) -> dict[str, Any]:
        content = "".join(self._content)
        message: dict[str, Any] = {
            "role": "assistant",
            "content": content or (None if self._calls else ""),
            "refusal": None,
        }
        thinking = "".join(self._thinking)
        if thinking:
            message |= {"reasoning": thinking, "reasoning_content": thinking}
        if self._calls and self._wishes.legacy_function:
            message["function_call"] = self._calls[0]["function"]
        elif self._calls:
            message["tool_calls"] = self._calls
        return message
