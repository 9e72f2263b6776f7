"""What /v1/chat/completions reads, and what upstream is then asked for."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import orjson
import pytest

from trio_gateway.core.errors import InvalidCall, ModelNotFound
from trio_gateway.dialects import openai_chat
from trio_gateway.dialects.strict_json import MAX_MARKS

if TYPE_CHECKING:
    from trio_gateway.core.domain import Call

USER = {"role": "user", "content": "Hi"}
PIXEL = "iVBORw0KGgo="


def parse(**fields: Any) -> Call:
    body = {"model": "Llama3", "messages": [USER], **fields}
    return openai_chat.parse(orjson.dumps(body))


def messages(*given: dict[str, Any]) -> list[dict[str, Any]]:
    sent: list[dict[str, Any]] = parse(messages=list(given)).body["messages"]
    return sent


def refused(param: str, **fields: Any) -> None:
    with pytest.raises(InvalidCall) as caught:
        parse(**fields)
    assert (caught.value.status, caught.value.param) == (400, param)


def test_a_plain_call_is_rebuilt_from_known_fields() -> None:
    """Nothing but validated fields goes upstream, and the model is the canonical one."""
    call = parse(user="me", metadata={"a": "b"}, store=True, service_tier="auto", mirostat=2)
    assert call.body == {"messages": [USER]}
    assert (call.endpoint, call.upstream) == ("/v1/chat/completions", "/api/chat")
    assert (call.requested, call.model) == ("Llama3", "llama3:latest")
    assert (call.stream, call.generates, call.ask) == (False, True, None)
    assert (call.prompt_bytes, call.parts, call.images) == (2, 1, 0)


def test_every_setting_reaches_its_place_upstream() -> None:
    """Sampling options go into `options` under the same names, and only those sent."""
    call = parse(
        temperature=0.2, top_p=1, seed=7, stop="END", frequency_penalty=-1, presence_penalty=2
    )
    assert call.body["options"] == {
        "temperature": 0.2,
        "top_p": 1,
        "seed": 7,
        "stop": ["END"],
        "frequency_penalty": -1,
        "presence_penalty": 2,
    }


def test_absent_and_null_settings_keep_the_models_own() -> None:
    """Delta 10: neither temperature nor top_p is forced to 1.0."""
    assert "options" not in parse(temperature=None, top_p=None, stop=None, seed=None).body


@pytest.mark.parametrize(
    ("fields", "ask"),
    [
        ({"max_tokens": 9}, 9),
        ({"max_completion_tokens": 8}, 8),
        ({"max_tokens": 9, "max_completion_tokens": 8}, 8),
        ({"max_tokens": -1}, None),
        ({"max_tokens": None}, None),
    ],
)
def test_the_lower_of_two_limits_is_the_ask(fields: dict[str, Any], ask: int | None) -> None:
    """Delta 4: max_completion_tokens counts, and never inside `options`."""
    call = parse(**fields)
    assert call.ask == ask
    assert "options" not in call.body


@pytest.mark.parametrize(
    ("stop", "sent"),
    [("a", ["a"]), (["a", "b"], ["a", "b"]), ("", None), (["", "a"], ["a"]), ([], None)],
)
def test_stop_is_a_list_without_empty_sequences(stop: Any, sent: list[str] | None) -> None:
    """An empty sequence would end every answer before it began."""
    assert parse(stop=stop).body.get("options", {}).get("stop") == sent


@pytest.mark.parametrize(
    ("param", "fields"),
    [
        ("n", {"n": 2}),
        ("logit_bias", {"logit_bias": {"50256": -100}}),
        ("top_logprobs", {"top_logprobs": 3}),
        ("top_logprobs", {"logprobs": True, "top_logprobs": 21}),
        ("logprobs", {"logprobs": 3}),
        ("stream_options", {"stream_options": {"include_usage": True}}),
        ("stream", {"stream": "yes"}),
        ("temperature", {"temperature": "hot"}),
        ("temperature", {"temperature": 2.5}),
        ("top_p", {"top_p": True}),
        ("seed", {"seed": 1.5}),
        ("stop", {"stop": [1]}),
        ("stop", {"stop": ["x"] * 17}),
        ("stop", {"stop": "x" * 1025}),
        ("max_tokens", {"max_tokens": 0}),
        ("max_completion_tokens", {"max_completion_tokens": "9"}),
        ("reasoning_effort", {"reasoning_effort": "heroic"}),
        ("reasoning.effort", {"reasoning": {"effort": "heroic"}}),
        ("response_format.type", {"response_format": {"type": "xml"}}),
        ("response_format.type", {"response_format": {}}),
        ("response_format.json_schema", {"response_format": {"type": "json_schema"}}),
        (
            "response_format.json_schema.schema",
            {"response_format": {"type": "json_schema", "json_schema": {"name": "x"}}},
        ),
        ("messages", {"messages": []}),
        ("messages", {"messages": None}),
        ("messages", {"messages": "Hi"}),
        ("messages", {"messages": ["Hi"]}),
        ("messages[0].role", {"messages": [{"content": "Hi"}]}),
        ("messages[0].role", {"messages": [{"role": ["user"], "content": "Hi"}]}),
        ("messages[1].role", {"messages": [USER, {"role": "robot", "content": "Hi"}]}),
        ("messages[0].content", {"messages": [{"role": "user", "content": None}]}),
        ("messages[0].content", {"messages": [{"role": "user", "content": 3}]}),
        ("messages[0].content[0]", {"messages": [{"role": "user", "content": ["a"]}]}),
        ("model", {"model": ""}),
        ("model", {"model": 3}),
    ],
)
def test_what_cannot_be_kept_is_refused_by_name(param: str, fields: dict[str, Any]) -> None:
    """Deltas 6, 16, 21, 22 and 25: never ignored in silence, never a 500 from upstream."""
    refused(param, **fields)


def test_harmless_forms_of_unsupported_fields_pass() -> None:
    """Delta 6: what asks for nothing is not refused."""
    call = parse(n=1, logit_bias={}, parallel_tool_calls=True, logprobs=False, stream_options=None)
    assert call.body == {"messages": [USER]}


def test_a_name_no_model_can_have_is_a_model_not_found() -> None:
    """A malformed name and an absent model get the same answer."""
    with pytest.raises(ModelNotFound):
        parse(model="a//b")


def test_a_twin_of_a_known_field_is_refused() -> None:
    """Upstream would read `Model`, so the gateway must not overlook it."""
    with pytest.raises(InvalidCall) as caught:
        openai_chat.parse(b'{"model":"a","Model":"b","messages":[]}')
    assert caught.value.param == "model"


def test_text_parts_become_one_message_with_its_images() -> None:
    """Delta 7: a message stays one message."""
    parts = [
        {"type": "text", "text": "Look:"},
        {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{PIXEL}"}},
        {"type": "text", "text": "what?"},
        {"type": "image_url", "image_url": f"data:;base64,{PIXEL}"},
        {"type": "input_audio", "input_audio": {"data": "UklGRg==", "format": "wav"}},
    ]
    call = parse(messages=[{"role": "user", "content": parts}])
    images = [PIXEL, PIXEL, "UklGRg=="]
    assert call.body["messages"] == [{"role": "user", "content": "Look:\nwhat?", "images": images}]
    assert (call.images, call.parts, call.prompt_bytes) == (3, 1, 11)


@pytest.mark.parametrize(
    ("param", "part"),
    [
        ("image_url.url", {"type": "image_url", "image_url": {"url": "https://a/b.png"}}),
        ("image_url", {"type": "image_url", "image_url": "file:///etc/passwd"}),
        ("image_url.url", {"type": "image_url", "image_url": {"url": "data:image/png;base64,*"}}),
        ("image_url.url", {"type": "image_url", "image_url": {"url": "data:image/png;base64,"}}),
        ("image_url", {"type": "image_url"}),
        ("input_audio.data", {"type": "input_audio", "input_audio": {}}),
        ("text", {"type": "text"}),
        ("type", {"type": "file", "file": {}}),
        ("type", {"type": ["text"]}),
        ("type", {}),
    ],
)
def test_a_bad_part_is_named(param: str, part: dict[str, Any]) -> None:
    """No URL is ever fetched; the refusal says which part."""
    refused(f"messages[0].content[0].{param}", messages=[{"role": "user", "content": [part]}])


def test_assistants_may_say_nothing_and_refuse() -> None:
    """Delta 8: null content, refusal parts and empty arguments are legal history."""
    said, refusing, calling = messages(
        {"role": "assistant", "content": None},
        {"role": "assistant", "content": [{"type": "refusal", "refusal": "No."}]},
        {
            "role": "assistant",
            "tool_calls": [
                {"id": "c1", "type": "function", "function": {"name": "f", "arguments": ""}}
            ],
        },
    )
    assert said == {"role": "assistant", "content": ""}
    assert refusing["content"] == "No."
    assert calling["tool_calls"] == [
        {"id": "c1", "function": {"index": 0, "name": "f", "arguments": {}}}
    ]


def test_arguments_may_be_an_object_and_calls_nameless() -> None:
    """Some clients send history as upstream has it; an id is not needed."""
    call = {"function": {"name": "f", "arguments": {"a": 1}}}
    (message,) = messages({"role": "assistant", "tool_calls": [call]})
    assert message["tool_calls"] == [{"function": {"index": 0, "name": "f", "arguments": {"a": 1}}}]


def test_tool_results_find_their_tool() -> None:
    """Delta 7: tool_call_id survives array content, and the name is looked up from it."""
    call = {"id": "c1", "function": {"name": "f", "arguments": '{"a":[1,"é"]}'}}
    asked, answered = messages(
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c1", "content": [{"type": "text", "text": "42"}]},
    )
    assert asked["tool_calls"][0]["function"]["arguments"] == {"a": [1, "é"]}
    assert answered == {"role": "tool", "content": "42", "tool_name": "f", "tool_call_id": "c1"}


@pytest.mark.parametrize(
    "arguments", ["[1]", '{"a":' * 70 + "1" + "}" * 70, "{", "3", "null", 7, "[" * 500]
)
def test_arguments_that_are_no_object_are_refused(arguments: Any) -> None:
    """Upstream wants an object; anything else would be its Go error."""
    call = {"function": {"name": "f", "arguments": arguments}}
    at = "messages[0].tool_calls[0].function.arguments"
    refused(at, messages=[{"role": "assistant", "tool_calls": [call]}])


def test_images_and_schemas_are_bounded() -> None:
    """One call cannot bring more than upstream can bear."""
    part = {"type": "image_url", "image_url": f"data:;base64,{PIXEL}"}
    refused("messages[0].content", messages=[{"role": "user", "content": [part] * 129}])
    wanted = {"type": "json_schema", "json_schema": {"schema": {"description": "x" * 65_536}}}
    refused("response_format.json_schema.schema", response_format=wanted)


def test_developers_are_the_system_and_functions_are_tools() -> None:
    """Delta 9: newer and older roles both arrive as what templates know."""
    told, asked, answered = messages(
        {"role": "developer", "content": "Be brief."},
        {"role": "assistant", "content": None, "function_call": {"name": "f", "arguments": "{}"}},
        {"role": "function", "name": "f", "content": "42"},
    )
    assert told == {"role": "system", "content": "Be brief."}
    assert asked["tool_calls"] == [{"function": {"index": 0, "name": "f", "arguments": {}}}]
    assert answered == {"role": "tool", "content": "42", "tool_name": "f"}


@pytest.mark.parametrize("key", ["reasoning", "reasoning_content"])
def test_reasoning_is_accepted_under_both_names(key: str) -> None:
    """Delta 14: what the gateway says, it can be told again."""
    (message,) = messages({"role": "assistant", "content": "4", key: "2+2"})
    assert message == {"role": "assistant", "content": "4", "thinking": "2+2"}


@pytest.mark.parametrize(
    ("effort", "think"),
    [
        ("none", False),
        ("minimal", "low"),
        ("low", "low"),
        ("medium", "medium"),
        ("high", "high"),
        ("max", "max"),
        ("xhigh", "max"),
        ("ultra", "max"),
    ],
)
def test_reasoning_effort_is_a_wish(effort: str, think: Any) -> None:
    """Delta 15: the pipeline may drop it for a model that cannot think."""
    for fields in ({"reasoning_effort": effort}, {"reasoning": {"effort": effort}}):
        call = parse(**fields)
        assert call.body["think"] == think
        assert call.rendering.think_is_wish


def test_without_an_effort_nothing_is_said_about_thinking() -> None:
    """Upstream decides by the model, as it does natively."""
    call = parse(reasoning_effort="", reasoning=None)
    assert "think" not in call.body
    assert not call.rendering.think_is_wish


@pytest.mark.parametrize(
    ("wanted", "sent"),
    [
        (None, None),
        ({"type": "text"}, None),
        ({"type": "json_object"}, "json"),
        (
            {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "array"}}},
            {"type": "array"},
        ),
    ],
)
def test_response_format_is_upstreams_format(wanted: Any, sent: Any) -> None:
    """Delta 21: only forms that upstream accepts are ever sent."""
    assert parse(response_format=wanted).body.get("format") == sent


def test_logprobs_are_asked_for_with_their_alternatives() -> None:
    """Delta 22: top_logprobs travels only beside logprobs."""
    body = parse(logprobs=True, top_logprobs=4).body
    assert (body["logprobs"], body["top_logprobs"]) == (True, 4)
    assert "top_logprobs" not in parse(logprobs=True).body


def test_arguments_of_all_calls_have_one_bound_together() -> None:
    """Each is JSON of its own, and many that are allowed alone would be read for long."""
    arguments = '{"a":[' + "[]," * (MAX_MARKS // 2) + "1]}"
    calls = [{"id": f"c{at}", "function": {"name": "f", "arguments": arguments}} for at in range(4)]
    asked = {"role": "assistant", "content": None, "tool_calls": calls[:1]}
    assert len(messages(USER, asked)[1]["tool_calls"]) == 1
    refused(
        "messages[1].tool_calls[2].function.arguments",
        messages=[USER, asked | {"tool_calls": calls}],
    )


def test_arguments_may_hold_long_texts() -> None:
    """What stands in their strings is not counted."""
    text = "if x: y = {1: [2]}\n" * 20_000
    call = {"function": {"name": "f", "arguments": orjson.dumps({"text": text}).decode()}}
    asked = {"role": "assistant", "content": None, "tool_calls": [call, call]}
    (first, second) = messages(USER, asked)[1]["tool_calls"]
    assert first["function"]["arguments"] == second["function"]["arguments"] == {"text": text}
