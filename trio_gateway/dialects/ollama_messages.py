"""Messages and tools of /api/chat, rebuilt from the fields that Ollama knows."""

from __future__ import annotations

import re
from typing import Any

from trio_gateway.dialects import fields
from trio_gateway.dialects.fields import INT32_MAX, Json, path, refusal, required
from trio_gateway.dialects.ollama_values import Tally, read_images
from trio_gateway.dialects.strict_json import refuse_twins

MAX_MESSAGES = 4096
MAX_TOOLS = 256
MAX_TOOL_CALLS = 256  # in one message

# Templates know more roles than four, such as `developer`, `control` or `document 1`.
_ROLE = re.compile(r"[a-z0-9_][a-z0-9_. -]{0,63}")
_MESSAGE = frozenset(
    {"role", "content", "thinking", "images", "tool_calls", "tool_name", "tool_call_id"}
)
_TOOL = frozenset({"type", "function"})
_FUNCTION = frozenset({"name", "description", "parameters"})
_TOOL_CALL = frozenset({"id", "function"})
_CALLED = frozenset({"index", "name", "arguments"})


def read_messages(source: Json, tally: Tally) -> list[Json]:
    """Return the messages, empty where there are none. Raises InvalidCall."""
    messages = fields.objects(source, "messages", most=MAX_MESSAGES)
    return [
        _message(message, tally, f"messages[{index}]")
        for index, message in enumerate(messages or ())
    ]


def _message(source: Json, tally: Tally, at: str) -> Json:
    refuse_twins(source, _MESSAGE, at)
    role = required(fields.text(source, "role", at), "role", at).lower()
    if not _ROLE.fullmatch(role):
        raise refusal(path("role", at), "must be the name of a role")
    message: Json = {"role": role, "content": fields.text(source, "content", at) or ""}
    tally.add(message["content"])
    for key in ("thinking", "tool_name", "tool_call_id"):
        value = fields.text(source, key, at)
        if value:
            message[key] = value
            tally.add(value)
    images = read_images(source, tally, at)
    if images:
        message["images"] = images
    calls = fields.objects(source, "tool_calls", at, most=MAX_TOOL_CALLS)
    if calls:
        inner = path("tool_calls", at)
        message["tool_calls"] = [
            _tool_call(call, tally, path(index, inner)) for index, call in enumerate(calls)
        ]
    return message


def _tool_call(source: Json, tally: Tally, at: str) -> Json:
    refuse_twins(source, _TOOL_CALL, at)
    function = required(fields.mapping(source, "function", at), "function", at)
    inner = path("function", at)
    refuse_twins(function, _CALLED, inner)
    called: Json = {
        "name": required(fields.text(function, "name", inner), "name", inner),
        "arguments": fields.mapping(function, "arguments", inner) or {},
    }
    index = fields.integer(function, "index", inner, low=0, high=INT32_MAX)
    if index is not None:
        called["index"] = index
    tally.add_json(called)
    identity = fields.text(source, "id", at)
    return {"id": identity, "function": called} if identity else {"function": called}


def read_tools(source: Json, tally: Tally) -> list[Json]:
    """Return the tools, empty where there are none. Raises InvalidCall."""
    tools = fields.objects(source, "tools", most=MAX_TOOLS)
    return [_tool(tool, tally, f"tools[{index}]") for index, tool in enumerate(tools or ())]


def _tool(source: Json, tally: Tally, at: str) -> Json:
    refuse_twins(source, _TOOL, at)
    kind = fields.text(source, "type", at)
    function = required(fields.mapping(source, "function", at), "function", at)
    inner = path("function", at)
    refuse_twins(function, _FUNCTION, inner)
    rebuilt: Json = {
        "name": required(fields.text(function, "name", inner), "name", inner),
        "description": fields.text(function, "description", inner) or "",
        "parameters": _parameters(function, inner),
    }
    tally.add_json(rebuilt)
    return {"type": kind or "function", "function": rebuilt}


def _parameters(function: Json, at: str) -> Json:
    """Return a tool's parameters; templates read `type` and `properties`, so both are there."""
    parameters = fields.mapping(function, "parameters", at) or {}
    if not _types(parameters, str) or not _is_schema(parameters):
        raise refusal(path("parameters", at), "must be a JSON Schema object")
    kind, properties = parameters.get("type"), parameters.get("properties")
    return {**parameters, "type": kind or "object", "properties": properties or {}}


def _is_schema(value: Any) -> bool:
    """Whether Ollama's reader takes a value for a property of a tool."""
    if type(value) is not dict:
        return False
    return (
        _types(value, str, list)
        and _kind(value, "description", str)
        and _kind(value, "enum", list)
        and _kind(value, "properties", dict)
        and _kind(value, "anyOf", list)
        and _kind(value, "required", list)
        and _all_text(value.get("required"))
        and _all_text(value.get("type"))
        and all(map(_is_schema, (value.get("properties") or {}).values()))
        and all(map(_is_schema, value.get("anyOf") or ()))
    )


def _types(value: Json, *kinds: type) -> bool:
    return value.get("type") is None or type(value["type"]) in kinds


def _kind(value: Json, key: str, kind: type) -> bool:
    return value.get(key) is None or type(value[key]) is kind


def _all_text(value: Any) -> bool:
    if value is None or type(value) is str:
        return True
    return type(value) is list and all(type(item) is str for item in value)
