"""Tools and the choice among them, as upstream is told."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import orjson
import pytest

from trio_gateway.core.errors import InvalidCall
from trio_gateway.dialects import openai_chat

if TYPE_CHECKING:
    from trio_gateway.core.domain import Call

EMPTY = {"type": "object", "properties": {}}


def parse(**fields: Any) -> Call:
    body = {"model": "m", "messages": [{"role": "user", "content": ""}], **fields}
    return openai_chat.parse(orjson.dumps(body))


def tool(name: str, **function: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, **function}}


def names(call: Any) -> list[str]:
    return [entry["function"]["name"] for entry in call.body.get("tools", [])]


def test_a_tool_is_rebuilt_with_its_parameters() -> None:
    """The order of properties is kept, and words that upstream does not know are left out."""
    schema = {"type": "object", "properties": {"b": {"type": "string"}, "a": {}}, "required": ["b"]}
    call = parse(tools=[tool("f", description="Does f.", parameters=schema, strict=True)])
    assert call.body["tools"] == [tool("f", description="Does f.", parameters=schema)]
    assert list(call.body["tools"][0]["function"]["parameters"]["properties"]) == ["b", "a"]
    assert call.prompt_bytes == len(orjson.dumps(call.body["tools"][0]["function"]))


@pytest.mark.parametrize("given", [{}, {"parameters": None}, {"parameters": {}}])
def test_a_tool_without_parameters_gets_an_empty_object(given: dict[str, Any]) -> None:
    """Delta 23: templates must not meet a missing type."""
    call = parse(tools=[tool("f", **given)])
    assert call.body["tools"][0]["function"]["parameters"] == EMPTY


def test_schemas_that_are_booleans_say_nothing() -> None:
    """Upstream cannot read them, and several libraries write them for `anything`."""
    schema = {"properties": {"a": True, "b": {"anyOf": [False, {"type": "null"}]}}}
    call = parse(tools=[tool("f", parameters=schema)])
    sent = call.body["tools"][0]["function"]["parameters"]
    assert sent["properties"] == {"a": {}, "b": {"anyOf": [{}, {"type": "null"}]}}


@pytest.mark.parametrize(
    ("choice", "sent"),
    [
        (None, ["f", "g"]),
        ("auto", ["f", "g"]),
        ("required", ["f", "g"]),
        ("none", []),
        ({"type": "function", "function": {"name": "g"}}, ["g"]),
        (
            {"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": [tool("f")]}},
            ["f"],
        ),
    ],
)
def test_tool_choice_decides_which_tools_are_sent(choice: Any, sent: list[str]) -> None:
    """Delta 5: none drops them, a name sends that one, required does its best."""
    assert names(parse(tools=[tool("f"), tool("g")], tool_choice=choice)) == sent


@pytest.mark.parametrize(
    ("param", "fields"),
    [
        ("tool_choice", {"tools": [tool("f")], "tool_choice": tool("h")}),
        ("tool_choice", {"tools": [tool("f")], "tool_choice": "f"}),
        ("tool_choice", {"tools": [tool("f")], "tool_choice": 1}),
        ("tool_choice", {"tool_choice": "required"}),
        ("tool_choice.type", {"tools": [tool("f")], "tool_choice": {"type": "custom"}}),
        ("tools[0].type", {"tools": [{"type": "custom", "custom": {"name": "f"}}]}),
        ("tools[0].function", {"tools": [{"type": "function"}]}),
        ("tools[0].function.name", {"tools": [tool("")]}),
        ("tools[0].function.parameters", {"tools": [tool("f", parameters=[])]}),
        ("tools[0].function.parameters.type", {"tools": [tool("f", parameters={"type": "array"})]}),
        ("tools[0].function.parameters.type", {"tools": [tool("f", parameters={"type": ["x"]})]}),
        ("tools", {"tools": [3]}),
        ("tools", {"tools": {}}),
        ("functions[0].name", {"functions": [{}]}),
        ("functions", {"functions": [{"name": "f"}], "tools": [tool("f")]}),
        ("function_call", {"functions": [{"name": "f"}], "function_call": {"name": "g"}}),
    ],
)
def test_a_bad_tool_is_named(param: str, fields: dict[str, Any]) -> None:
    """Delta 23: the type other than function among them."""
    with pytest.raises(InvalidCall) as caught:
        parse(**fields)
    assert caught.value.param == param


def test_no_choice_without_tools_is_no_error() -> None:
    """Some libraries always send `auto` or `none`."""
    assert names(parse(tool_choice="auto")) == []
    assert names(parse(tools=[], tool_choice="none")) == []


def test_legacy_functions_become_tools_and_answer_as_functions() -> None:
    """Delta 9: the caller who sends `functions` reads `function_call`."""
    functions = [{"name": "f", "parameters": EMPTY}, {"name": "g"}]
    call = parse(functions=functions, function_call={"name": "g"})
    assert names(call) == ["g"]
    assert call.rendering.legacy_function
    assert names(parse(functions=functions, function_call="none")) == []


def test_parallel_tool_calls_false_is_remembered() -> None:
    """Delta 6: upstream cannot be told, so the answer is cut to its first call."""
    assert parse(parallel_tool_calls=False).rendering.single_tool_call
    assert not parse().rendering.single_tool_call
