"""Whatever bytes come in, a Call or a refusal comes out; and every Call can be sent on."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

import orjson
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from trio_gateway.core.domain import Call, Chunk
from trio_gateway.core.errors import InvalidCall, ModelNotFound
from trio_gateway.dialects import ollama, openai_chat, openai_completions, openai_embeddings

if TYPE_CHECKING:
    from collections.abc import Callable

# A shared machine may be slow; that says nothing about the property.
patient = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])

PARSERS: list[Callable[[bytes], Call]] = [
    openai_chat.parse,
    openai_completions.parse,
    openai_embeddings.parse,
]
WORDS = sorted(
    openai_chat.KNOWN
    | openai_completions.KNOWN
    | openai_embeddings.KNOWN
    | {"role", "content", "type", "text", "image_url", "url", "function", "name", "parameters"}
    | {"arguments", "id", "tool_call_id", "include_usage", "effort", "json_schema", "schema"}
)
VALUES = ["", "user", "assistant", "tool", "none", "text", "function", "json_schema", "{}", "m"]

scalars = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.sampled_from(VALUES)
    | st.text(max_size=5)
)
anything = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(WORDS), inner, max_size=4)
    ),
    max_leaves=12,
)
extras = st.sampled_from([{}, {"content": "a"}, {"content": None}, {"content": 1}])
message = st.builds(
    lambda role, extra, odd: {"role": role, "content": "a", **extra, **odd},
    st.sampled_from(["system", "user", "assistant", "tool", "function"]),
    extras,
    st.dictionaries(
        st.sampled_from(["content", "tool_calls", "function_call", "reasoning", "name"]),
        anything,
        max_size=1,
    ),
)
sound = st.fixed_dictionaries(
    {
        "model": st.just("m"),
        "messages": st.lists(message, min_size=1, max_size=3),
        "prompt": st.just("a"),
        "input": st.just("a"),
    }
)
# A few odd fields at a time: many at once would all be refused for the first.
odd_fields = st.dictionaries(st.sampled_from(WORDS), anything, max_size=2)
bodies = st.builds(lambda body, odd: {**body, **odd}, sound, odd_fields)


def attempt(body: bytes) -> list[Call]:
    """Parse on every route; only the two refusals may come out beside a Call."""
    calls = []
    for parse in PARSERS:
        with contextlib.suppress(InvalidCall, ModelNotFound):
            calls.append(parse(body))
    return calls


@patient
@given(st.binary(max_size=200))
def test_any_bytes_are_a_call_or_a_refusal(body: bytes) -> None:
    """No other exception ever leaves a parser."""
    attempt(body)


@patient
@given(bodies)
def test_any_object_is_a_call_that_can_be_sent_or_a_refusal(body: dict[str, Any]) -> None:
    """What was accepted can be encoded, and has the model, but never the caller's own limits."""
    for call in attempt(orjson.dumps(body)):
        sent = orjson.loads(ollama.encode_call(call, ceiling=5, load_options={}, keep_alive="5m"))
        assert sent["model"] == call.model
        if call.generates:
            assert sent["options"]["num_predict"] == 5
            assert sent["stream"] is True


chunks = st.lists(
    st.builds(
        Chunk,
        raw=st.just({}),
        content=st.text(max_size=5),
        thinking=st.text(max_size=5),
        tool_calls=st.lists(
            st.just({"id": "c", "function": {"index": 0, "name": "f", "arguments": {}}}), max_size=2
        ),
        logprobs=st.none() | st.just([{"token": "a", "logprob": -1.0}]),
    ),
    max_size=6,
)


@patient
@given(chunks, st.booleans(), st.sampled_from(["stop", "length", "load", None]))
def test_a_stream_and_a_whole_answer_say_the_same(
    given_chunks: list[Chunk], logprobs: bool, reason: str | None
) -> None:
    """Added up, the events of a stream are the document that a caller without one gets."""
    said: dict[bool, tuple[str, str, int, str]] = {}
    for stream in (False, True):
        body = {
            "model": "m",
            "messages": [{"role": "user", "content": ""}],
            "stream": stream,
            "logprobs": logprobs,
        }
        call = openai_chat.parse(orjson.dumps(body))
        rendering = openai_chat.render(call, request_id="r", created=1)
        for chunk in [*given_chunks, Chunk(raw={}, done=True, done_reason=reason)]:
            rendering.absorb(chunk)
        said[stream] = summed(rendering.body()) if stream else told(rendering.body())
    assert said[True] == said[False]


def told(body: bytes) -> tuple[str, str, int, str]:
    choice = orjson.loads(body)["choices"][0]
    message = choice["message"]
    calls = message.get("tool_calls", [])
    return (
        message["content"] or "",
        message.get("reasoning", ""),
        len(calls),
        choice["finish_reason"],
    )


def summed(body: bytes) -> tuple[str, str, int, str]:
    *frames, last, rest = body.split(b"\n\n")
    assert (last, rest) == (b"data: [DONE]", b"")
    choices = [orjson.loads(frame[6:])["choices"][0] for frame in frames]
    deltas = [choice["delta"] for choice in choices]
    assert ["role" in delta for delta in deltas] == [True] + [False] * (len(deltas) - 1)
    calls = [call for delta in deltas for call in delta.get("tool_calls", [])]
    assert [call["index"] for call in calls] == list(range(len(calls)))
    return (
        "".join(delta.get("content") or "" for delta in deltas),
        "".join(delta.get("reasoning", "") for delta in deltas),
        len({call["id"] for call in calls}),
        choices[-1]["finish_reason"],
    )
