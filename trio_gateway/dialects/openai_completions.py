"""/v1/completions: the request, in upstream's terms, and the choice of its answer.

Upstream puts the prompt into the model's chat template, as its own /v1 does.
"""

from __future__ import annotations

from typing import Any

from trio_gateway.core.domain import Call
from trio_gateway.dialects import fields
from trio_gateway.dialects.ollama_values import MAX_TOP_LOGPROBS
from trio_gateway.dialects.openai_options import (
    SHARED,
    read_limit,
    read_options,
    read_stream,
    refuse_logit_bias,
)
from trio_gateway.dialects.openai_rendering import CompletionWishes
from trio_gateway.dialects.openai_text import TextAnswer, TextStream
from trio_gateway.dialects.openai_values import read_model, refuse_more_than_one
from trio_gateway.dialects.strict_json import parse_object

ENDPOINT = "/v1/completions"
KNOWN = SHARED | {"prompt", "suffix", "best_of", "echo"}

Json = dict[str, Any]


def parse(body: bytes) -> Call:
    """Parse a request body; raises InvalidCall naming a field, or ModelNotFound."""
    raw = parse_object(body, KNOWN)
    requested, model = read_model(raw)
    prompt = _prompt(raw)
    suffix = fields.text(raw, "suffix") or ""
    _refuse_unsupported(raw)
    stream, include_usage = read_stream(raw)
    logprobs = _logprobs(raw)
    # Reasoning has no place in this shape: thought tokens would be paid for and dropped.
    upstream: Json = {"prompt": prompt, "think": False}
    if suffix:
        upstream["suffix"] = suffix
    options = read_options(raw)
    if options:
        upstream["options"] = options
    if logprobs is not None:
        upstream |= {"logprobs": True, "top_logprobs": logprobs}
    return Call(
        endpoint=ENDPOINT,
        upstream="/api/generate",
        requested=requested,
        model=model,
        body=upstream,
        stream=stream,
        ask=read_limit(raw, "max_tokens"),
        prompt_bytes=fields.size(prompt) + fields.size(suffix),
        rendering=CompletionWishes(include_usage=include_usage, logprobs=logprobs),
    )


def render(call: Call, *, request_id: str, created: float) -> TextStream | TextAnswer:
    """Open the answer to one call; `created` is in unix seconds."""
    shape = TextStream if call.stream else TextAnswer
    return shape(call, request_id=request_id, created=created)


def _prompt(raw: Json) -> str:
    """Read one prompt; several would be several calls, and an empty one only loads the model."""
    given = raw.get("prompt")
    prompt = given[0] if isinstance(given, list) and len(given) == 1 else given
    if prompt is None:
        raise fields.refusal("prompt", "is required")
    if not isinstance(prompt, str):
        raise fields.refusal("prompt", "must be one string; token arrays are not supported")
    if not prompt:
        raise fields.refusal("prompt", "must not be empty")
    return prompt


def _refuse_unsupported(raw: Json) -> None:
    refuse_more_than_one(raw, "n")
    refuse_more_than_one(raw, "best_of")
    refuse_logit_bias(raw)
    if fields.boolean(raw, "echo"):
        raise fields.refusal("echo", "is not supported")


def _logprobs(raw: Json) -> int | None:
    """Read how many alternatives to give for each token; 0 gives the tokens alone."""
    if raw.get("logprobs") is False:
        return None  # chat's spelling of "none", which some clients send here as well
    return fields.integer(raw, "logprobs", low=0, high=MAX_TOP_LOGPROBS)
