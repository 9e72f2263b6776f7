"""/v1/completions: what it reads, asks upstream for, and answers."""

from __future__ import annotations

from typing import Any

import orjson
import pytest
from openai.types import Completion

from trio_gateway.core.domain import Call, Chunk
from trio_gateway.core.errors import InvalidCall, UpstreamError
from trio_gateway.dialects import ollama, openai_completions


def parse(**fields: Any) -> Call:
    return openai_completions.parse(orjson.dumps({"model": "M", "prompt": "Once", **fields}))


def open_answer(**fields: Any) -> Any:
    return openai_completions.render(parse(**fields), request_id="r1", created=1_700_000_000)


def done(**fields: Any) -> Chunk:
    counts: dict[str, Any] = {"prompt_tokens": 3, "output_tokens": 2}
    return Chunk(raw={}, done=True, **{"done_reason": "stop", **counts, **fields})


def events(stream: Any, *chunks: Chunk) -> list[dict[str, Any]]:
    frames = b"".join(map(stream.chunk, chunks)).split(b"\n\n")
    assert frames[-2:] == [b"data: [DONE]", b""]
    parsed = [orjson.loads(frame[6:]) for frame in frames[:-2]]
    for event in parsed:
        if event["choices"][:1] and event["choices"][0]["finish_reason"]:
            Completion.model_validate(event)
    return parsed


def test_a_plain_completion_asks_generate_without_thinking() -> None:
    """Delta 17: think is off, and there is no limit of 16 tokens."""
    call = parse(suffix="end", seed=1, user="me", max_tokens=None)
    assert call.body == {
        "prompt": "Once",
        "suffix": "end",
        "think": False,
        "options": {"seed": 1},
    }
    assert (call.endpoint, call.upstream) == ("/v1/completions", "/api/generate")
    assert (call.ask, call.prompt_bytes, call.parts) == (None, 7, 1)
    assert call.rendering.think_is_wish


def test_an_array_of_one_prompt_is_that_prompt() -> None:
    """Several libraries always wrap it."""
    assert parse(prompt=["Once"]).body["prompt"] == "Once"


@pytest.mark.parametrize(
    ("param", "fields"),
    [
        ("prompt", {"prompt": ""}),
        ("prompt", {"prompt": None}),
        ("prompt", {"prompt": [""]}),
        ("prompt", {"prompt": []}),
        ("prompt", {"prompt": ["a", "b"]}),
        ("prompt", {"prompt": [1, 2]}),
        ("prompt", {"prompt": [[1, 2]]}),
        ("prompt", {"prompt": 3}),
        ("n", {"n": 2}),
        ("n", {"n": 0}),
        ("best_of", {"best_of": 2}),
        ("echo", {"echo": True}),
        ("logit_bias", {"logit_bias": {"1": 1}}),
        ("logprobs", {"logprobs": 21}),
        ("logprobs", {"logprobs": True}),
        ("suffix", {"suffix": 1}),
        ("stop", {"stop": 1.5}),
        ("stream_options", {"stream_options": {}}),
        ("max_tokens", {"max_tokens": 0}),
    ],
)
def test_what_cannot_be_kept_is_refused_by_name(param: str, fields: dict[str, Any]) -> None:
    """Deltas 6, 16, 17 and 25."""
    with pytest.raises(InvalidCall) as caught:
        parse(**fields)
    assert (caught.value.status, caught.value.param) == (400, param)


def test_a_plain_answer_is_this_and_nothing_else() -> None:
    """The golden document; reasoning that came all the same is left out."""
    answer = open_answer()
    for chunk in (Chunk(raw={}, thinking="hm"), Chunk(raw={}, content="upon"), done()):
        answer.absorb(chunk)
    parsed = orjson.loads(answer.body())
    Completion.model_validate(parsed)
    assert parsed == {
        "id": "cmpl-r1",
        "object": "text_completion",
        "created": 1_700_000_000,
        "model": "M",
        "system_fingerprint": "fp_ollama",
        "choices": [{"text": "upon", "index": 0, "logprobs": None, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5},
    }


def test_an_answer_without_its_end_is_an_error() -> None:
    """Delta 2: 502, not a half answer."""
    answer = open_answer()
    answer.absorb(Chunk(raw={}, content="upon"))
    with pytest.raises(UpstreamError):
        answer.body()


def test_a_stream_ends_with_finish_usage_and_done() -> None:
    """Delta 13: usage is null until the last event, not zero on each."""
    stream = open_answer(stream=True, stream_options={"include_usage": True})
    chunks = (
        Chunk(raw={}, content="upon"),
        Chunk(raw={}, thinking="hm"),
        Chunk(raw={}, content=" a"),
    )
    parsed = events(stream, *chunks, done(content=" time", done_reason="length"))
    texts = [event["choices"][0]["text"] for event in parsed[:-1]]
    assert texts == ["upon", " a", " time", ""]
    assert parsed[-2]["choices"][0]["finish_reason"] == "length"
    assert [event["usage"] for event in parsed[:-1]] == [None] * 4
    assert (parsed[-1]["choices"], parsed[-1]["usage"]["total_tokens"]) == ([], 5)


def test_a_stream_says_nothing_of_usage_unasked() -> None:
    """Delta 13: no key at all."""
    parsed = events(open_answer(stream=True), Chunk(raw={}, content="upon"), done())
    assert not any("usage" in event for event in parsed)
    assert len({(event["id"], event["created"]) for event in parsed}) == 1


def test_logprobs_false_is_none() -> None:
    """Chat's spelling, which some clients send here as well."""
    assert "logprobs" not in parse(logprobs=False).body


def test_logprobs_fill_their_four_columns() -> None:
    """Delta 17: offsets count characters of the answer, on through the stream."""
    tokens: list[dict[str, Any]] = [
        {"token": "é", "logprob": -1.0, "top_logprobs": [{"token": "é", "logprob": -1.0}]},
        {"token": "ab", "logprob": -2.0, "top_logprobs": [{"token": "x", "logprob": -0.5}]},
    ]
    call = parse(logprobs=1, stream=True)
    assert (call.body["logprobs"], call.body["top_logprobs"]) == (True, 1)
    chunks = [Chunk(raw={}, content=token["token"], logprobs=[token]) for token in tokens]
    parsed = events(open_answer(logprobs=1, stream=True), *chunks, done())
    assert [event["choices"][0]["logprobs"] for event in parsed] == [
        {"tokens": ["é"], "token_logprobs": [-1], "top_logprobs": [{"é": -1}], "text_offset": [0]},
        {
            "tokens": ["ab"],
            "token_logprobs": [-2],
            "top_logprobs": [{"x": -0.5}],
            "text_offset": [1],
        },
        None,
    ]
    answer = open_answer(logprobs=0)
    for chunk in (*chunks, done()):
        answer.absorb(chunk)
    assert orjson.loads(answer.body())["choices"][0]["logprobs"] == {
        "tokens": ["é", "ab"],
        "token_logprobs": [-1, -2],
        "top_logprobs": None,
        "text_offset": [0, 1],
    }


def test_upstreams_own_lines_become_events() -> None:
    """The two dialects fit together, from upstream's bytes to OpenAI's."""
    call = parse(stream=True)
    lines = [
        b'{"model":"m","response":"upon","done":false}',
        b'{"model":"m","response":"","done":true,"done_reason":"stop","context":[1]}',
    ]
    stream = openai_completions.render(call, request_id="r", created=1)
    parsed = events(stream, *(ollama.parse_chunk(call, line) for line in lines))
    assert [event["choices"][0]["text"] for event in parsed] == ["upon", ""]
