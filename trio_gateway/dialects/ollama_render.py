"""Native answers, rebuilt from known fields: no name or host of a remote model gets out."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import orjson

from trio_gateway.core.domain import Chunk
from trio_gateway.core.errors import UpstreamError
from trio_gateway.dialects.ollama_parse import CHAT, EMBED, EMBEDDINGS, GENERATE

if TYPE_CHECKING:
    from trio_gateway.core.domain import Call
    from trio_gateway.core.errors import GatewayError
    from trio_gateway.dialects.ollama_parse import Preload

Json = dict[str, Any]

JSON = "application/json; charset=utf-8"
NDJSON = "application/x-ndjson"

_MAX_TIMESTAMP = 64  # characters
_DURATIONS = ("total_duration", "load_duration", "prompt_eval_duration", "eval_duration")


def render(call: Call, *, request_id: str, created: float) -> Text | Vectors:  # noqa: ARG001
    """Return the rendering of one native call; `created` is in Unix seconds.

    `request_id` is every dialect's argument, and native answers have no place for it.
    """
    if call.upstream in {EMBED, EMBEDDINGS}:
        return Vectors(call)
    return Text(call, created)


def encode_error(error: GatewayError) -> bytes:
    """Return the body of a refusal or failure."""
    return orjson.dumps({"error": error.message})


def preload_answer(preload: Preload, *, created: float) -> bytes:
    """Return what Ollama says once it has loaded a model; one object, streamed or not."""
    if preload.endpoint == EMBEDDINGS:
        return orjson.dumps({"embedding": []})
    if preload.endpoint == EMBED:
        return orjson.dumps({"model": preload.requested, "embeddings": []})
    answer: Json = {"model": preload.requested, "created_at": _timestamp(created)}
    if preload.endpoint == GENERATE:
        answer["response"] = ""
    else:
        answer["message"] = {"role": "assistant", "content": ""}
    return orjson.dumps({**answer, "done": True, "done_reason": "load"})


class Text:
    """The answer of /api/chat or /api/generate, line by line or whole."""

    def __init__(self, call: Call, created: float) -> None:
        """Keep what every line repeats; `created` serves where upstream names no time."""
        self.content_type = NDJSON if call.stream else JSON
        self._chat = call.upstream == CHAT
        self._model = call.requested
        self._created = created
        self._newline = b"\n" if call.stream else b""
        self._chunks: list[Chunk] = []

    def chunk(self, chunk: Chunk) -> bytes:
        """Return the line for one chunk."""
        return orjson.dumps(self._shape(chunk), option=orjson.OPT_APPEND_NEWLINE)

    def absorb(self, chunk: Chunk) -> None:
        """Keep one chunk for `body`."""
        self._chunks.append(chunk)

    def body(self) -> bytes:
        """Return all chunks merged into one object: the last one with every one's text.

        Raises UpstreamError where the last chunk never came.
        """
        chunks = self._chunks
        if not chunks or not chunks[-1].done:
            raise UpstreamError
        last = chunks[-1]
        merged = Chunk(
            last.raw,
            content="".join([chunk.content for chunk in chunks]),
            thinking="".join([chunk.thinking for chunk in chunks]),
            tool_calls=[call for chunk in chunks for call in chunk.tool_calls],
            logprobs=[item for chunk in chunks for item in chunk.logprobs or ()],
            done=True,
            done_reason=last.done_reason,
            prompt_tokens=last.prompt_tokens,
            output_tokens=last.output_tokens,
        )
        return orjson.dumps(self._shape(merged))

    def error(self, error: GatewayError) -> bytes:
        """Return the last line of a broken stream."""
        return encode_error(error) + self._newline

    def _shape(self, chunk: Chunk) -> Json:
        created = chunk.raw.get("created_at")
        if type(created) is not str or len(created) > _MAX_TIMESTAMP:
            created = _timestamp(self._created)
        answer: Json = {"model": self._model, "created_at": created}
        holder = answer
        if self._chat:
            holder = answer["message"] = {"role": "assistant", "content": chunk.content}
        else:
            answer["response"] = chunk.content
        if chunk.thinking:
            holder["thinking"] = chunk.thinking
        if chunk.tool_calls:
            holder["tool_calls"] = chunk.tool_calls
        answer["done"] = chunk.done
        if chunk.done:
            self._finish(answer, chunk)
        if chunk.logprobs:
            answer["logprobs"] = chunk.logprobs
        return answer

    def _finish(self, answer: Json, chunk: Chunk) -> None:
        if chunk.done_reason:
            answer["done_reason"] = chunk.done_reason
        context = chunk.raw.get("context")
        if not self._chat and type(context) is list:
            answer["context"] = [item for item in context if type(item) is int]
        _add_metrics(answer, chunk)


class Vectors:
    """The answer of /api/embed or /api/embeddings, always whole."""

    content_type = JSON

    def __init__(self, call: Call) -> None:
        """Keep what the answer repeats."""
        self._model = call.requested
        self._legacy = call.upstream == EMBEDDINGS
        self._last: Chunk | None = None

    def chunk(self, chunk: Chunk) -> bytes:
        """Return the answer: its one chunk is all of it."""
        self.absorb(chunk)
        return self.body()

    def absorb(self, chunk: Chunk) -> None:
        """Keep the one chunk for `body`."""
        self._last = chunk

    def body(self) -> bytes:
        """Return the answer. Raises UpstreamError where no chunk came."""
        if self._last is None:
            raise UpstreamError
        raw = self._last.raw
        if self._legacy:
            return orjson.dumps({"embedding": raw["embedding"]})
        answer: Json = {"model": self._model, "embeddings": raw["embeddings"]}
        _add_metrics(answer, self._last)
        return orjson.dumps(answer)

    def error(self, error: GatewayError) -> bytes:
        """Return the whole error body."""
        return encode_error(error)


def _add_metrics(answer: Json, chunk: Chunk) -> None:
    """Add the metrics that are there; like Ollama, leave out what is zero."""
    for key in _DURATIONS:
        value = chunk.raw.get(key)
        if type(value) is int and value > 0:
            answer[key] = value
    if chunk.prompt_tokens and chunk.prompt_tokens > 0:
        answer["prompt_eval_count"] = chunk.prompt_tokens
    if chunk.output_tokens and chunk.output_tokens > 0:
        answer["eval_count"] = chunk.output_tokens


def _timestamp(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat().replace("+00:00", "Z")
