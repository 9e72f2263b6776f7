"""Tools on their way in: `tools` and `tool_choice`, and their ancestors with `function`.

Upstream has no `tool_choice`. `none` drops the tools, a named function or `allowed_tools`
sends those alone, and `required` is taken as `auto`: the best that can be done without
refusing callers whose libraries always send it.
"""

from __future__ import annotations

from typing import Any

from trio_gateway.dialects import fields, ollama_messages
from trio_gateway.dialects.ollama_values import Tally

Json = dict[str, Any]


def read_tools(body: Json, tally: Tally) -> tuple[list[Json], bool]:
    """Read the tools to send upstream, and whether the legacy fields named them.

    Raises InvalidCall naming `tools`, `tool_choice`, `functions` or `function_call`.
    """
    listed = fields.objects(body, "tools") or []
    functions = fields.objects(body, "functions") or []
    if listed and functions:
        raise fields.refusal("functions", "must not be sent together with 'tools'")
    tools = [_tool(entry, f"tools[{i}]") for i, entry in enumerate(listed)]
    tools += [_function(entry, f"functions[{i}]") for i, entry in enumerate(functions)]
    checked = ollama_messages.read_tools({"tools": tools}, Tally())
    param = "function_call" if functions else "tool_choice"
    chosen = _chosen(checked, body.get(param), param)
    for tool in chosen:
        tally.add_json(tool["function"])
    return chosen, bool(functions)


def _tool(raw: Json, at: str) -> Json:
    fields.choice(raw, "type", ("function",), at)
    function = fields.required(fields.mapping(raw, "function", at), "function", at)
    return _function(function, fields.path("function", at))


def _function(raw: Json, at: str) -> Json:
    fields.required(fields.text(raw, "name", at, most=256) or None, "name", at)
    parameters = fields.mapping(raw, "parameters", at) or {}
    inside = fields.path("parameters", at)
    fields.choice(parameters, "type", ("object",), inside)
    return {"type": "function", "function": {**raw, "parameters": _schema(parameters)}}


def _schema(raw: Any) -> Any:
    """Copy a schema; where it is `true` or `false`, which upstream cannot read, it says nothing."""
    if isinstance(raw, bool):
        return {}
    if not isinstance(raw, dict):
        return raw
    copy = dict(raw)
    properties, choices = raw.get("properties"), raw.get("anyOf")
    if isinstance(properties, dict):
        copy["properties"] = {name: _schema(value) for name, value in properties.items()}
    if isinstance(choices, list):
        copy["anyOf"] = [_schema(value) for value in choices]
    return copy


def _chosen(tools: list[Json], choice: Any, param: str) -> list[Json]:
    """Apply the caller's choice to the tools, or raise InvalidCall naming `param`."""
    if choice is None or choice == "auto":
        return tools
    if choice == "none":
        return []
    if not tools:
        raise fields.refusal(param, "needs tools to choose from")
    if choice == "required":
        return tools
    wanted = _wanted(choice, param)
    chosen = [tool for tool in tools if tool["function"]["name"] in wanted]
    if not chosen:
        raise fields.refusal(param, "names no tool of this request")
    return chosen


def _wanted(choice: Any, param: str) -> list[Any]:
    """Read the names out of a choice by name, in any of its three shapes."""
    if not isinstance(choice, dict):
        raise fields.refusal(param, "must be none, auto, required, or name a function")
    if param == "function_call":
        return [choice.get("name")]
    kind = fields.choice(choice, "type", ("function", "allowed_tools"), param)
    if kind != "allowed_tools":
        return [_name(choice)]
    allowed = fields.mapping(choice, "allowed_tools", param) or choice
    return [_name(entry) for entry in fields.objects(allowed, "tools", param) or []]


def _name(entry: Json) -> Any:
    function = entry.get("function", entry)
    return function.get("name") if isinstance(function, dict) else None
