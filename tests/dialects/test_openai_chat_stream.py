"""A streamed chat answer, as the clients of OpenAI take it in."""

from __future__ import annotations

from typing import Any

import orjson
import pytest
from openai.lib.streaming.chat._completions import ChatCompletionStreamState
from openai.types.chat import ChatCompletionChunk

from trio_gateway.core.domain import Chunk
from trio_gateway.core.errors import Unauthenticated, UpstreamError
from trio_gateway.dialects import openai_chat

CREATED = 1_700_000_000
HEAD = (
    b'data: {"id":"chatcmpl-abc1","object":"chat.completion.chunk","created":1700000000,'
    b'"model":"m","system_fingerprint":"fp_ollama","choices":'
)


def open_stream(**fields: Any) -> Any:
    body = {"model": "m", "messages": [{"role": "user", "content": ""}], "stream": True, **fields}
    call = openai_chat.parse(orjson.dumps(body))
    return openai_chat.render(call, request_id="req_abc-1", created=CREATED)


def done(**fields: Any) -> Chunk:
    counts: dict[str, Any] = {"prompt_tokens": 3, "output_tokens": 2}
    return Chunk(raw={}, done=True, **{"done_reason": "stop", **counts, **fields})


def tool_call(name: str, arguments: Any = None, **rest: Any) -> dict[str, Any]:
    return {"function": {"index": 0, "name": name, "arguments": arguments}, **rest}


def events(stream: Any, *chunks: Chunk) -> list[dict[str, Any]]:
    """Render the chunks, check the framing, and return every event but `[DONE]`."""
    text = b"".join(stream.chunk(chunk) for chunk in chunks)
    frames = text.split(b"\n\n")
    assert frames.pop() == b""
    assert all(frame.startswith(b"data: ") for frame in frames)
    assert frames.pop() == b"data: [DONE]"
    parsed = [orjson.loads(frame[6:]) for frame in frames]
    for event in parsed:
        ChatCompletionChunk.model_validate(event)
    assert len({(event["id"], event["created"]) for event in parsed}) == 1
    return parsed


def accumulate(parsed: list[dict[str, Any]]) -> Any:
    """Add the deltas up with the client's own code."""
    state: Any = ChatCompletionStreamState()
    for event in parsed:
        state.handle_chunk(ChatCompletionChunk.model_validate(event))
    return state.get_final_completion()


def deltas(parsed: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [event["choices"][0]["delta"] for event in parsed if event["choices"]]


def test_a_plain_stream_is_this_and_nothing_else() -> None:
    """The golden stream: role once, text, finish, [DONE]; one id, one date."""
    stream = open_stream()
    chunks = [Chunk(raw={}, content="Hé\n"), Chunk(raw={}, content='"'), done()]
    assert b"".join(map(stream.chunk, chunks)) == (
        HEAD + b'[{"index":0,"delta":{"role":"assistant","content":"H\xc3\xa9\\n"},'
        b'"logprobs":null,"finish_reason":null}]}\n\n'
        + HEAD
        + b'[{"index":0,"delta":{"content":"\\""},"logprobs":null,"finish_reason":null}]}\n\n'
        + HEAD
        + b'[{"index":0,"delta":{},"logprobs":null,"finish_reason":"stop"}]}\n\n'
        + b"data: [DONE]\n\n"
    )


def test_usage_is_null_until_its_own_event() -> None:
    """Delta 13: with include_usage every event has the key, and the last one the counts."""
    stream = open_stream(stream_options={"include_usage": True})
    parsed = events(stream, Chunk(raw={}, content="a"), Chunk(raw={}, content="b"), done())
    assert [event["usage"] for event in parsed[:-1]] == [None] * 3
    assert parsed[-1]["choices"] == []
    counts = {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}
    assert parsed[-1]["usage"] == counts
    assert accumulate(parsed).usage.total_tokens == 5


def test_usage_is_absent_unless_asked_for() -> None:
    """Delta 13: nobody who did not ask gets a key or an event for it."""
    parsed = events(open_stream(), Chunk(raw={}, content="a"), done())
    assert not any("usage" in event for event in parsed)


def test_reasoning_comes_first_under_both_names() -> None:
    """Delta 14: one chunk with both is split, and the role is said once."""
    both = Chunk(raw={}, thinking="because", content="so")
    parsed = events(open_stream(), Chunk(raw={}, thinking="hm"), both, done())
    assert deltas(parsed) == [
        {"role": "assistant", "reasoning": "hm", "reasoning_content": "hm"},
        {"reasoning": "because", "reasoning_content": "because"},
        {"content": "so"},
        {},
    ]


def test_tool_calls_are_numbered_over_the_whole_stream() -> None:
    """Delta 3: index 0 repeated and ids missing or repeated upstream, contiguous here."""
    parsed = events(
        open_stream(),
        Chunk(raw={}, tool_calls=[tool_call("f", {"a": 1}, id="c"), tool_call("g", {}, id="c")]),
        Chunk(raw={}, content="x", tool_calls=[tool_call("h")]),
        done(tool_calls=[tool_call("i", {"<": 2**53})]),
    )
    message = accumulate(parsed).choices[0].message
    seen = [(call.function.name, call.function.arguments) for call in message.tool_calls]
    assert seen == [
        ("f", '{"a":1}'),
        ("g", "{}"),
        ("h", "{}"),
        ("i", '{"<":9007199254740992}'),
    ]
    ids = [call.id for call in message.tool_calls]
    assert ids[0] == "c"
    assert len(set(ids)) == 4
    assert all(ids)
    indices = [call["index"] for delta in deltas(parsed) for call in delta.get("tool_calls", [])]
    assert indices == [0, 1, 2, 3]
    assert parsed[-1]["choices"][0]["finish_reason"] == "tool_calls"


def test_parallel_false_cuts_to_the_first_call() -> None:
    """Delta 6: later calls, in this chunk or the next, are dropped."""
    two = Chunk(raw={}, tool_calls=[tool_call("f"), tool_call("g")])
    parsed = events(open_stream(parallel_tool_calls=False), two, done(tool_calls=[tool_call("h")]))
    message = accumulate(parsed).choices[0].message
    assert [call.function.name for call in message.tool_calls] == ["f"]


def test_arguments_that_are_text_already_stay_as_they_are() -> None:
    """Upstream means an object; another server in its place may not, and some calls are none."""
    calls = [tool_call("f", '{"a": 1}'), tool_call("g", ""), {"name": "h"}]
    parsed = events(open_stream(), Chunk(raw={}, tool_calls=calls), done())
    message = accumulate(parsed).choices[0].message
    assert [call.function.arguments for call in message.tool_calls] == ['{"a": 1}', "{}"]


def test_a_chunk_that_says_nothing_is_no_event() -> None:
    """Upstream sends such chunks; clients need none of them."""
    stream = open_stream()
    assert stream.chunk(Chunk(raw={})) == b""
    stream.chunk(Chunk(raw={}, content="a"))
    assert stream.chunk(Chunk(raw={})) == b""


def test_legacy_callers_read_a_function_call() -> None:
    """Delta 9: `functions` in, `function_call` out."""
    stream = open_stream(functions=[{"name": "f"}])
    parsed = events(stream, Chunk(raw={}, tool_calls=[tool_call("f", {"a": 1})]), done())
    assert deltas(parsed)[0]["function_call"] == {"name": "f", "arguments": '{"a":1}'}
    assert parsed[-1]["choices"][0]["finish_reason"] == "function_call"


@pytest.mark.parametrize(
    ("reason", "called", "finish"),
    [
        ("stop", False, "stop"),
        ("stop", True, "tool_calls"),
        ("length", False, "length"),
        ("length", True, "length"),
        ("load", False, "stop"),
        ("unload", False, "stop"),
        ("", False, "stop"),
        (None, False, "stop"),
        ("surprise", True, "tool_calls"),
    ],
)
def test_the_finish_reason_is_always_one_of_openais(
    reason: str | None, called: bool, finish: str
) -> None:
    """Delta 16: upstream's words never leak."""
    calls = [tool_call("f")] if called else []
    parsed = events(open_stream(), done(done_reason=reason, tool_calls=calls))
    assert parsed[-1]["choices"][0]["finish_reason"] == finish
    assert [event["choices"][0]["finish_reason"] for event in parsed[:-1]] == [None]


def test_an_empty_answer_still_has_its_role() -> None:
    """The node client throws where a stream never names one."""
    parsed = events(open_stream(), Chunk(raw={}), done())
    assert deltas(parsed) == [{"role": "assistant", "content": ""}, {}]


def test_logprobs_have_every_field() -> None:
    """Delta 22: `refusal`, `bytes` and `top_logprobs` are filled in, on empty text too."""
    first = [{"token": "é", "logprob": -0.5}]
    alternatives = [{"token": "b", "logprob": -1.5, "bytes": [98]}]
    last = [{"token": "", "logprob": -1, "bytes": [], "top_logprobs": alternatives}]
    stream = open_stream(logprobs=True)
    parsed = events(stream, Chunk(raw={}, content="é", logprobs=first), done(logprobs=last))
    shaped = [event["choices"][0]["logprobs"] for event in parsed]
    assert shaped == [
        {
            "content": [
                {"token": "é", "logprob": -0.5, "bytes": [195, 169], "top_logprobs": []},
            ],
            "refusal": None,
        },
        {
            "content": [{"token": "", "logprob": -1, "bytes": [], "top_logprobs": alternatives}],
            "refusal": None,
        },
        None,
    ]
    assert len(accumulate(parsed).choices[0].logprobs.content) == 2


def test_logprobs_nobody_asked_for_stay_away() -> None:
    """Upstream may send them; the caller did not ask."""
    chunk = Chunk(raw={}, content="a", logprobs=[{"token": "a", "logprob": 0}])
    parsed = events(open_stream(), chunk, done())
    assert parsed[0]["choices"][0]["logprobs"] is None


def test_a_broken_stream_ends_with_its_error_alone() -> None:
    """Deltas 1 and 2: an error event, no finish, no [DONE]."""
    stream = open_stream()
    stream.chunk(Chunk(raw={}, content="a"))
    assert stream.error(UpstreamError()) == (
        b'data: {"error":{"message":"The model server failed to answer this request.",'
        b'"type":"api_error","param":null,"code":"upstream_error"}}\n\n'
    )
    cut = orjson.loads(stream.error(Unauthenticated())[6:])["error"]
    assert (cut["code"], cut["type"]) == ("invalid_api_key", "invalid_request_error")


def test_a_stream_can_be_gathered() -> None:
    """`absorb` and `body` give the very events that `chunk` gives."""
    chunks = [Chunk(raw={}, content="a"), done()]
    gathered = open_stream()
    for chunk in chunks:
        gathered.absorb(chunk)
    assert gathered.body() == b"".join(map(open_stream().chunk, chunks))
