"""The two ends of a call to Ollama: the body that is sent, and each object that comes back.

Both are rebuilt from known fields. What upstream says of a failure is never repeated.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import orjson

from trio_gateway.core.domain import Chunk
from trio_gateway.core.errors import UpstreamError

if TYPE_CHECKING:
    from collections.abc import Callable

    from trio_gateway.core.domain import Call

Json = dict[str, Any]

_NONE: Json = {}
_TOKEN = ("token", "logprob", "bytes")
_NOT_WHOLE = -1  # a count that is no whole number; nobody believes a negative one


def encode_call(
    call: Call,
    *,
    ceiling: int | None,
    load_options: Json,
    keep_alive: str,
    model: str | None = None,
) -> bytes:
    """Return the body to send upstream.

    `ceiling` becomes `num_predict`; `load_options` are the operator's and beat all others.
    `model` is the catalog's own spelling, where that differs from the canonical name in
    case (/api/embeddings looks names up in exact case).
    """
    body = {"model": model or call.model, **call.body, "keep_alive": _keep_alive(keep_alive)}
    options = {**call.body.get("options", _NONE), **load_options}
    if call.generates:
        # Always streamed: otherwise an abort, a cut and a partial count could see nothing.
        body["stream"] = True
        if ceiling is not None:
            # Upstream takes 0 for no limit at all.
            options["num_predict"] = max(ceiling, 1)
    if options:
        body["options"] = options
    return orjson.dumps(body)


def _keep_alive(value: str) -> str | float:
    """Return a bare number as one: upstream reads a string only as a duration with a unit."""
    try:
        return float(value)
    except ValueError:
        return value


def parse_chunk(call: Call, line: bytes) -> Chunk:
    """Return what one line of upstream's answer says; embeddings have one line, and are done.

    Raises UpstreamError for anything that is not such an object, or that tells of an error.
    """
    try:
        raw = orjson.loads(line)
    except orjson.JSONDecodeError:
        raise _unreadable() from None
    if type(raw) is not dict:
        raise _unreadable()
    if raw.get("error") is not None:
        raise UpstreamError
    return _READERS[call.upstream](raw)


def _chat(raw: Json) -> Chunk:
    message = raw.get("message") or _NONE
    if type(message) is not dict:
        raise _unreadable()
    return _piece(raw, message.get("content"), message)


def _generate(raw: Json) -> Chunk:
    return _piece(raw, raw.get("response"), raw)


def _piece(raw: Json, content: Any, holder: Json) -> Chunk:
    """Read what chat and generate share; `holder` has the thinking and the tool calls."""
    chunk = Chunk(raw, content or "", holder.get("thinking") or "")
    if type(chunk.content) is not str or type(chunk.thinking) is not str:
        raise _unreadable()
    if "tool_calls" in holder:
        chunk.tool_calls = [_tool_call(item) for item in _items(holder["tool_calls"])]
    if "logprobs" in raw:
        chunk.logprobs = [_logprob(item) for item in _items(raw["logprobs"])] or None
    if raw.get("done") is True:
        reason = raw.get("done_reason")
        chunk.done_reason = reason if type(reason) is str and reason else None
        _finish(chunk)
    return chunk


def _embed(raw: Json) -> Chunk:
    vectors = raw.get("embeddings")
    if type(vectors) is not list or not all(type(vector) is list for vector in vectors):
        raise _unreadable()
    return _finish(Chunk(raw))


def _embeddings(raw: Json) -> Chunk:
    if type(raw.get("embedding")) is not list:
        raise _unreadable()
    return _finish(Chunk(raw))


def _finish(chunk: Chunk) -> Chunk:
    chunk.done = True
    chunk.prompt_tokens = _count(chunk.raw.get("prompt_eval_count"))
    chunk.output_tokens = _count(chunk.raw.get("eval_count"))
    return chunk


def _count(value: Any) -> int | None:
    if value is None or type(value) is int:
        return value
    if type(value) is float and value.is_integer():
        return int(value)
    return _NOT_WHOLE


def _items(value: Any) -> list[Json]:
    if value is None:
        return []
    if type(value) is not list or not all(type(item) is dict for item in value):
        raise _unreadable()
    return value


def _tool_call(source: Json) -> Json:
    function = source.get("function")
    if type(function) is not dict or type(function.get("name")) is not str:
        raise _unreadable()
    arguments = function.get("arguments")
    called: Json = {
        "name": function["name"],
        "arguments": arguments if type(arguments) is dict else {},
    }
    if type(function.get("index")) is int:
        called = {"index": function["index"], **called}
    identity = source.get("id")
    if type(identity) is str and identity:
        return {"id": identity, "function": called}
    return {"function": called}


def _logprob(source: Json) -> Json:
    found = {key: source[key] for key in _TOKEN if key in source}
    if "top_logprobs" in source:
        found["top_logprobs"] = [
            {key: item[key] for key in _TOKEN if key in item}
            for item in _items(source["top_logprobs"])
        ]
    return found


def _unreadable() -> UpstreamError:
    return UpstreamError("The model server sent an answer that cannot be read.")


_READERS: dict[str, Callable[[Json], Chunk]] = {
    "/api/chat": _chat,
    "/api/generate": _generate,
    "/api/embed": _embed,
    "/api/embeddings": _embeddings,
}
