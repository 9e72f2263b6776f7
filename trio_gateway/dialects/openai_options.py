"""Generation settings on their way in: what both /v1 routes that generate read alike.

What is absent stays absent, so that a model keeps the temperature that its author gave it
(Ollama's own /v1 would send 1.0).
"""

from __future__ import annotations

from typing import Any

from trio_gateway.dialects import fields
from trio_gateway.dialects.ollama_values import MAX_STOP_LENGTH
from trio_gateway.dialects.strict_json import refuse_twins

_MOST_STOPS = 16
_UNLIMITED = -1  # not OpenAI's, but what several front ends send for "no limit"

Json = dict[str, Any]

SHARED = frozenset(
    {
        "model",
        "stream",
        "stream_options",
        "temperature",
        "top_p",
        "seed",
        "stop",
        "frequency_penalty",
        "presence_penalty",
        "max_tokens",
        "logprobs",
        "n",
        "logit_bias",
    }
)


def read_options(body: Json) -> Json:
    """Read the sampling options in upstream's terms, or raise InvalidCall."""
    wanted = {
        "temperature": fields.number(body, "temperature", low=0, high=2),
        "top_p": fields.number(body, "top_p", low=0, high=1),
        "frequency_penalty": fields.number(body, "frequency_penalty", low=-2, high=2),
        "presence_penalty": fields.number(body, "presence_penalty", low=-2, high=2),
        "seed": fields.integer(body, "seed"),
        "stop": _stop(body),
    }
    return {key: value for key, value in wanted.items() if value is not None}


def _stop(body: Json) -> list[str] | None:
    """Read `stop`; an empty sequence is dropped, for it would end the answer before it began."""
    single = isinstance(body.get("stop"), str)
    given = [body["stop"]] if single else fields.texts(body, "stop", most=_MOST_STOPS)
    if max(map(len, given or []), default=0) > MAX_STOP_LENGTH:
        raise fields.refusal("stop", f"must hold at most {MAX_STOP_LENGTH} characters each")
    return [stop for stop in given or [] if stop] or None


def read_limit(body: Json, *keys: str) -> int | None:
    """Read the lowest of the caller's output limits, in tokens; None is no limit."""
    limits = []
    for key in keys:
        limit = fields.integer(body, key, low=_UNLIMITED, high=fields.INT32_MAX)
        if limit == 0:
            raise fields.refusal(key, "must be at least 1")
        if limit is not None and limit != _UNLIMITED:
            limits.append(limit)
    return min(limits, default=None)


def read_stream(body: Json) -> tuple[bool, bool]:
    """Read whether to stream, and whether to end the stream with the usage."""
    stream = fields.boolean(body, "stream") or False
    options = fields.mapping(body, "stream_options")
    if options is None:
        return stream, False
    if not stream:
        raise fields.refusal("stream_options", "is only allowed with 'stream' true")
    refuse_twins(options, frozenset({"include_usage"}), "stream_options")
    return stream, fields.boolean(options, "include_usage", "stream_options") or False


def refuse_logit_bias(body: Json) -> None:
    """Raise InvalidCall for a bias that would change the answer; upstream knows none."""
    if fields.mapping(body, "logit_bias"):
        raise fields.refusal("logit_bias", "is not supported")
