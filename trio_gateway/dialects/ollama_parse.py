"""Native requests: bytes to a Call, or to a Preload where there is no prompt."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from trio_gateway.core.domain import Call
from trio_gateway.core.models import InvalidModelName, canonical
from trio_gateway.dialects import fields
from trio_gateway.dialects.fields import INT32_MAX, Json, refusal
from trio_gateway.dialects.ollama_messages import read_messages, read_tools
from trio_gateway.dialects.ollama_values import (
    Tally,
    read_format,
    read_images,
    read_keep_alive,
    read_logprobs,
    read_options,
    read_think,
)
from trio_gateway.dialects.strict_json import parse_object

if TYPE_CHECKING:
    from collections.abc import Callable

CHAT = "/api/chat"
GENERATE = "/api/generate"
EMBED = "/api/embed"
EMBEDDINGS = "/api/embeddings"

MAX_INPUTS = 2048
MAX_CONTEXT = 262_144
BYTES_PER_CONTEXT_TOKEN = 4  # what an estimate takes for one token


@dataclass(frozen=True, slots=True)
class Preload:
    """A native request without a prompt: to Ollama it loads a model, or unloads it.

    `keep_alive_zero` says that the caller asks to unload.
    """

    endpoint: str
    requested: str
    model: str
    keep_alive_zero: bool = False
    stream: bool = False


@dataclass(slots=True)
class _Prompt:
    """What a reader found: `body` for upstream, its weight, and whether there is any prompt."""

    body: Json
    tally: Tally
    parts: int = 1
    empty: bool = False


_SHARED = frozenset({"model", "stream", "keep_alive", "options", "truncate"})
_GENERATING = _SHARED | {"format", "think", "logprobs", "top_logprobs", "shift"}
_SHOW = frozenset({"model", "name", "verbose", "system", "options"})


def parse(endpoint: str, body: bytes) -> Call | Preload:
    """Read the body of one of the four inference routes. Raises InvalidCall."""
    read, known = _ROUTES[endpoint]
    source = parse_object(body, known)
    requested, model = read_model(source)
    generates = endpoint in {CHAT, GENERATE}
    stream = fields.boolean(source, "stream") is not False and generates
    unload = read_keep_alive(source)
    options, ask = read_options(source)
    prompt = read(source)
    truncate = fields.boolean(source, "truncate")
    if prompt.empty:
        return Preload(endpoint, requested, model, keep_alive_zero=unload, stream=stream)
    if truncate is not None and endpoint != EMBEDDINGS:
        prompt.body["truncate"] = truncate
    if options:
        prompt.body["options"] = options
    return Call(
        endpoint=endpoint,
        upstream=endpoint,
        requested=requested,
        model=model,
        body=prompt.body,
        stream=stream,
        generates=generates,
        ask=ask if generates else None,
        prompt_bytes=prompt.tally.size,
        parts=prompt.parts,
        images=prompt.tally.images,
    )


def parse_show(body: bytes) -> str:
    """Return the canonical name of the model to show; `name` is the old word for `model`.

    Raises InvalidCall.
    """
    source = parse_object(body, _SHOW)
    return read_model(source if source.get("model") else {"model": source.get("name")})[1]


def read_model(source: Json) -> tuple[str, str]:
    """Return the model as the caller wrote it, and its canonical name. Raises InvalidCall."""
    requested = fields.text(source, "model")
    if not requested:
        raise refusal("model", "is required")
    try:
        return requested, canonical(requested).full
    except InvalidModelName:
        raise refusal("model", "must be a valid model name") from None


def _chat(source: Json) -> _Prompt:
    tally = Tally()
    messages = read_messages(source, tally)
    body: Json = {"messages": messages}
    tools = read_tools(source, tally)
    if tools:
        body["tools"] = tools
    _generation(source, body, tally)
    return _Prompt(body, tally, parts=len(messages), empty=not messages)


def _generate(source: Json) -> _Prompt:
    tally = Tally()
    body: Json = {}
    for key in ("prompt", "suffix", "system", "template"):
        value = fields.text(source, key)
        if value:
            body[key] = value
            tally.add(value)
    context = _context(source)
    if context:
        body["context"] = context
        tally.size += BYTES_PER_CONTEXT_TOKEN * len(context)
    if fields.boolean(source, "raw"):
        if body.keys() & {"system", "template", "context"}:
            raise refusal("raw", "does not go with system, template or context")
        body["raw"] = True
    images = read_images(source, tally)
    if images:
        body["images"] = images
    _generation(source, body, tally)
    return _Prompt(body, tally, empty="prompt" not in body)


def _context(source: Json) -> list[int] | None:
    context = fields.array(source, "context", most=MAX_CONTEXT)
    if context and not all(type(item) is int and 0 <= item <= INT32_MAX for item in context):
        raise refusal("context", "must be an array of token numbers")
    return context


def _generation(source: Json, body: Json, tally: Tally) -> None:
    """Add to `body` what chat and generate have in common."""
    shape, think = read_format(source, tally), read_think(source)
    if shape is not None:
        body["format"] = shape
    if think is not None:
        body["think"] = think
    body.update(read_logprobs(source))


def _embed(source: Json) -> _Prompt:
    tally = Tally()
    given = source.get("input")
    inputs = [given] if type(given) is str and given else given
    if inputs is not None and inputs != "":
        if type(inputs) is not list or not all(type(item) is str for item in inputs):
            raise refusal("input", "must be a string or an array of strings")
        if len(inputs) > MAX_INPUTS:
            raise refusal("input", f"must have at most {MAX_INPUTS} items")
        for item in inputs:
            tally.add(item)
    body: Json = {"input": given}
    dimensions = fields.integer(source, "dimensions", high=INT32_MAX)
    if dimensions is not None and dimensions > 0:
        body["dimensions"] = dimensions
    return _Prompt(body, tally, parts=len(inputs or ()), empty=not inputs)


def _embeddings(source: Json) -> _Prompt:
    tally = Tally()
    prompt = fields.text(source, "prompt") or ""
    tally.add(prompt)
    return _Prompt({"prompt": prompt}, tally, empty=not prompt)


_ROUTES: dict[str, tuple[Callable[[Json], _Prompt], frozenset[str]]] = {
    CHAT: (_chat, _GENERATING | {"messages", "tools"}),
    GENERATE: (
        _generate,
        _GENERATING | {"prompt", "suffix", "system", "template", "context", "raw", "images"},
    ),
    EMBED: (_embed, _SHARED | {"input", "dimensions"}),
    EMBEDDINGS: (_embeddings, _SHARED | {"prompt"}),
}
