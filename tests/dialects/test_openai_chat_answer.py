"""A chat answer in one document."""

from __future__ import annotations

from typing import Any

import orjson
import pytest
from openai.types.chat import ChatCompletion

from trio_gateway.core.domain import Chunk
from trio_gateway.core.errors import BudgetExhausted, InvalidCall, UpstreamError
from trio_gateway.dialects import ollama, openai_chat
from trio_gateway.dialects.openai_errors import encode_error


def open_answer(**fields: Any) -> Any:
    body = {"model": "M", "messages": [{"role": "user", "content": ""}], **fields}
    call = openai_chat.parse(orjson.dumps(body))
    return openai_chat.render(call, request_id="abc-1", created=1_700_000_000)


def done(**fields: Any) -> Chunk:
    counts: dict[str, Any] = {"prompt_tokens": 3, "output_tokens": 2}
    return Chunk(raw={}, done=True, **{"done_reason": "stop", **counts, **fields})


def answered(answer: Any, *chunks: Chunk) -> dict[str, Any]:
    for chunk in chunks:
        answer.absorb(chunk)
    parsed: dict[str, Any] = orjson.loads(answer.body())
    ChatCompletion.model_validate(parsed)
    return parsed


def test_a_plain_answer_is_this_and_nothing_else() -> None:
    """Deltas 11 and 12: the golden document, with refusal, logprobs and a unique id."""
    parsed = answered(
        open_answer(), Chunk(raw={}, content="He"), Chunk(raw={}, content="y"), done()
    )
    assert parsed == {
        "id": "chatcmpl-abc1",
        "object": "chat.completion",
        "created": 1_700_000_000,
        "model": "M",
        "system_fingerprint": "fp_ollama",
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": "Hey", "refusal": None},
                "logprobs": None,
                "finish_reason": "stop",
            }
        ],
        "usage": {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5},
    }


def test_tool_calls_have_null_content_ids_and_no_index() -> None:
    """Deltas 3 and 11: as OpenAI writes them, whatever chunks they came in."""
    first = {"function": {"index": 0, "name": "f", "arguments": {"a": [1, 2]}}}
    second = {"id": "c9", "function": {"index": 0, "name": "g"}}
    choice = answered(open_answer(), Chunk(raw={}, tool_calls=[first]), done(tool_calls=[second]))[
        "choices"
    ][0]
    assert choice["finish_reason"] == "tool_calls"
    assert choice["message"]["content"] is None
    made, given = choice["message"]["tool_calls"]
    assert made.pop("id").startswith("call_")
    assert made == {"type": "function", "function": {"name": "f", "arguments": '{"a":[1,2]}'}}
    assert given["id"] == "c9"
    assert given.keys() == {"id", "type", "function"}


def test_words_beside_a_tool_call_stay() -> None:
    """Only empty content is null."""
    call = {"function": {"name": "f"}}
    message = answered(open_answer(), Chunk(raw={}, content="ok", tool_calls=[call]), done())
    assert message["choices"][0]["message"]["content"] == "ok"


def test_one_call_only_where_parallel_calls_are_off() -> None:
    """Delta 6: the rest are dropped."""
    calls = [{"function": {"name": name}} for name in "fgh"]
    answer = answered(open_answer(parallel_tool_calls=False), done(tool_calls=calls))
    assert len(answer["choices"][0]["message"]["tool_calls"]) == 1


def test_legacy_callers_read_a_function_call() -> None:
    """Delta 9: `functions` in, `function_call` out."""
    answer = open_answer(functions=[{"name": "f"}])
    choice = answered(answer, done(tool_calls=[{"function": {"name": "f"}}]))["choices"][0]
    assert choice["message"]["function_call"] == {"name": "f", "arguments": "{}"}
    assert choice["finish_reason"] == "function_call"


def test_reasoning_is_named_twice() -> None:
    """Delta 14: clients read either name."""
    chunks = Chunk(raw={}, thinking="h"), Chunk(raw={}, thinking="m", content="4"), done()
    message = answered(open_answer(), *chunks)["choices"][0]["message"]
    assert (message["reasoning"], message["reasoning_content"]) == ("hm", "hm")
    assert message["content"] == "4"


def test_logprobs_of_all_chunks_come_together() -> None:
    """Delta 22: one list, with every field."""
    tokens = [[{"token": "a", "logprob": -1}], [{"token": "b", "logprob": -2}]]
    chunks = [Chunk(raw={}, content="x", logprobs=given) for given in tokens]
    choice = answered(open_answer(logprobs=True), *chunks, done())["choices"][0]
    assert choice["logprobs"]["refusal"] is None
    assert choice["logprobs"]["content"][1] == {
        "token": "b",
        "logprob": -2,
        "bytes": [98],
        "top_logprobs": [],
    }


@pytest.mark.parametrize(
    ("reason", "finish"), [("length", "length"), ("load", "stop"), (None, "stop")]
)
def test_the_finish_reason_is_never_null(reason: str | None, finish: str) -> None:
    """Delta 16: nor one of upstream's own words."""
    answer = answered(open_answer(), done(done_reason=reason))
    assert answer["choices"][0]["finish_reason"] == finish


def test_counts_nobody_can_believe_are_zero() -> None:
    """Delta 13: usage is always whole and never negative."""
    answer = answered(open_answer(), done(prompt_tokens=-1, output_tokens=None))
    assert answer["usage"] == {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}


def test_an_answer_without_its_end_is_an_error() -> None:
    """Delta 2: upstream going away is 502, not a finish_reason of null."""
    answer = open_answer()
    answer.absorb(Chunk(raw={}, content="He"))
    with pytest.raises(UpstreamError):
        answer.body()


def test_the_done_chunk_brings_the_document() -> None:
    """`chunk` serves whoever treats both kinds of answer alike."""
    answer = open_answer()
    assert answer.chunk(Chunk(raw={}, content="He")) == b""
    assert orjson.loads(answer.chunk(done()))["choices"][0]["message"]["content"] == "He"


def test_upstreams_own_lines_become_an_answer() -> None:
    """The two dialects fit together, from upstream's bytes to OpenAI's."""
    body = {"model": "M", "messages": [{"role": "user", "content": "?"}], "logprobs": True}
    call = openai_chat.parse(orjson.dumps(body))
    token = {"token": "4", "logprob": -0.1}
    counts = {"done_reason": "stop", "prompt_eval_count": 7, "eval_count": 1}
    lines = [
        orjson.dumps({"message": {"content": "4"}, "done": False, "logprobs": [token]}),
        orjson.dumps({"message": {"content": ""}, "done": True, **counts}),
    ]
    answer = openai_chat.render(call, request_id="a", created=1)
    parsed = answered(answer, *(ollama.parse_chunk(call, line) for line in lines))
    assert parsed["choices"][0]["message"]["content"] == "4"
    assert parsed["usage"]["total_tokens"] == 8


def test_errors_have_openais_shape() -> None:
    """Delta 20: message, type, param and code, whatever the status."""
    error = orjson.loads(encode_error(InvalidCall("'n' must be 1.", param="n")))
    assert error == {
        "error": {
            "message": "'n' must be 1.",
            "type": "invalid_request_error",
            "param": "n",
            "code": "invalid_request",
        }
    }
    quota = orjson.loads(open_answer().error(BudgetExhausted()))["error"]
    assert (quota["type"], quota["code"]) == ("insufficient_quota", "insufficient_quota")
