"""/v1/chat/completions: the request, in upstream's terms, and the choice of its answer."""

from __future__ import annotations

from typing import Any

from trio_gateway.core.domain import Call
from trio_gateway.dialects import fields
from trio_gateway.dialects.ollama_values import MAX_FORMAT_BYTES, MAX_TOP_LOGPROBS, Tally
from trio_gateway.dialects.openai_answer import ChatAnswer
from trio_gateway.dialects.openai_messages import read_messages
from trio_gateway.dialects.openai_options import (
    SHARED,
    read_limit,
    read_options,
    read_stream,
    refuse_logit_bias,
)
from trio_gateway.dialects.openai_rendering import ChatWishes
from trio_gateway.dialects.openai_stream import ChatStream
from trio_gateway.dialects.openai_tools import read_tools
from trio_gateway.dialects.openai_values import read_model, refuse_more_than_one
from trio_gateway.dialects.strict_json import parse_object, refuse_twins

ENDPOINT = "/v1/chat/completions"
KNOWN = SHARED | {
    "messages",
    "tools",
    "tool_choice",
    "functions",
    "function_call",
    "parallel_tool_calls",
    "max_completion_tokens",
    "response_format",
    "reasoning",
    "reasoning_effort",
    "top_logprobs",
}
_EFFORTS: dict[str, bool | str] = {
    "none": False,
    "minimal": "low",
    "low": "low",
    "medium": "medium",
    "high": "high",
    "max": "max",
    "xhigh": "max",
    "ultra": "max",
}

Json = dict[str, Any]


def parse(body: bytes) -> Call:
    """Parse a request body; raises InvalidCall naming a field, or ModelNotFound."""
    raw = parse_object(body, KNOWN)
    requested, model = read_model(raw)
    tally = Tally()
    messages = read_messages(raw, tally)
    refuse_more_than_one(raw, "n")
    refuse_logit_bias(raw)
    tools, legacy = read_tools(raw, tally)
    stream, include_usage = read_stream(raw)
    asked = {
        "tools": tools or None,
        "options": read_options(raw) or None,
        "format": _format(raw, tally),
        "think": _think(raw),
        **_logprobs(raw),
    }
    parallel = fields.boolean(raw, "parallel_tool_calls")
    wishes = ChatWishes(
        include_usage=include_usage,
        logprobs=bool(asked.get("logprobs")),
        single_tool_call=legacy or parallel is False,
        legacy_function=legacy,
        think_is_wish=asked["think"] is not None,
    )
    return Call(
        endpoint=ENDPOINT,
        upstream="/api/chat",
        requested=requested,
        model=model,
        body={"messages": messages}
        | {key: value for key, value in asked.items() if value is not None},
        stream=stream,
        ask=read_limit(raw, "max_tokens", "max_completion_tokens"),
        prompt_bytes=tally.size,
        parts=len(messages),
        images=tally.images,
        rendering=wishes,
    )


def render(call: Call, *, request_id: str, created: float) -> ChatStream | ChatAnswer:
    """Open the answer to one call; `created` is in unix seconds."""
    shape = ChatStream if call.stream else ChatAnswer
    return shape(call, request_id=request_id, created=created)


def _format(raw: Json, tally: Tally) -> str | Json | None:
    """Read `response_format`; a kind that upstream cannot keep to is refused, not ignored."""
    wanted = fields.mapping(raw, "response_format")
    if wanted is None:
        return None
    kinds = ("text", "json_object", "json_schema")
    at = "response_format"
    refuse_twins(wanted, frozenset({"type", "json_schema"}), at)
    kind = fields.required(fields.choice(wanted, "type", kinds, at), "type", at)
    if kind != "json_schema":
        return "json" if kind == "json_object" else None
    described = fields.required(fields.mapping(wanted, kind, at), kind, at)
    at = fields.path(kind, at)
    schema = fields.required(fields.mapping(described, "schema", at), "schema", at)
    if tally.add_json(schema) > MAX_FORMAT_BYTES:
        rule = f"must be at most {MAX_FORMAT_BYTES} bytes long"
        raise fields.refusal(fields.path("schema", at), rule)
    return schema


def _think(raw: Json) -> bool | str | None:
    """Read the effort; both spellings are in use, and the object's wins as it does upstream."""
    nested = fields.mapping(raw, "reasoning") or {}
    efforts = ("", *_EFFORTS)
    inner = fields.choice(nested, "effort", efforts, "reasoning")
    outer = fields.choice(raw, "reasoning_effort", efforts)
    return _EFFORTS.get(inner or outer or "")


def _logprobs(raw: Json) -> Json:
    wanted = fields.boolean(raw, "logprobs")
    top = fields.integer(raw, "top_logprobs", low=0, high=MAX_TOP_LOGPROBS)
    if top is not None and not wanted:
        raise fields.refusal("top_logprobs", "is only allowed with 'logprobs' true")
    if not wanted:
        return {}
    return {"logprobs": True, "top_logprobs": top} if top else {"logprobs": True}
