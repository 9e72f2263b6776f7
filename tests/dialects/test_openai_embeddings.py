"""/v1/embeddings: what it reads, asks upstream for, and answers."""

from __future__ import annotations

from typing import Any

import orjson
import pytest
from openai.types import CreateEmbeddingResponse

from trio_gateway.core.domain import Call, Chunk
from trio_gateway.core.errors import InvalidCall, UpstreamError
from trio_gateway.dialects import ollama, openai_embeddings


def parse(**fields: Any) -> Call:
    return openai_embeddings.parse(orjson.dumps({"model": "M", "input": "a", **fields}))


def answered(vectors: Any, **fields: Any) -> dict[str, Any]:
    answer = openai_embeddings.render(parse(**fields), request_id="r", created=1)
    chunk = Chunk(raw={"embeddings": vectors}, done=True, prompt_tokens=4)
    parsed: dict[str, Any] = orjson.loads(answer.chunk(chunk))
    return parsed


@pytest.mark.parametrize(
    ("given", "sent"), [("a", ["a"]), ("", [""]), (["a", ""], ["a", ""]), (["é"], ["é"])]
)
def test_inputs_are_always_sent_as_a_list(given: Any, sent: list[str]) -> None:
    """An empty text is embedded; sent bare it would only load the model."""
    call = parse(input=given)
    assert call.body == {"input": sent, "truncate": False}
    assert (call.upstream, call.generates, call.stream) == ("/api/embed", False, False)
    assert (call.parts, call.prompt_bytes) == (len(sent), len("".join(sent).encode()))


def test_dimensions_are_passed_on() -> None:
    """Delta 18: and truncate is false, as OpenAI refuses what is too long."""
    assert parse(dimensions=8, user="me").body == {
        "input": ["a"],
        "truncate": False,
        "dimensions": 8,
    }


@pytest.mark.parametrize(
    ("param", "fields"),
    [
        ("input", {"input": None}),
        ("input", {"input": []}),
        ("input", {"input": [1, 2]}),
        ("input", {"input": [[1, 2]]}),
        ("input", {"input": 3}),
        ("input", {"input": ["a"] * 2049}),
        ("encoding_format", {"encoding_format": "hex"}),
        ("encoding_format", {"encoding_format": 1}),
        ("dimensions", {"dimensions": 0}),
        ("model", {"model": None}),
    ],
)
def test_what_cannot_be_kept_is_refused_by_name(param: str, fields: dict[str, Any]) -> None:
    """Delta 18: token arrays among it, in our own words."""
    with pytest.raises(InvalidCall) as caught:
        parse(**fields)
    assert (caught.value.status, caught.value.param) == (400, param)


@pytest.mark.parametrize("encoding", [{}, {"encoding_format": "Float"}, {"encoding_format": None}])
def test_floats_come_as_they_are(encoding: dict[str, Any]) -> None:
    """The golden document, in the order of the inputs."""
    parsed = answered([[0.1, -0.2], [1, 0]], input=["a", "b"], **encoding)
    CreateEmbeddingResponse.model_validate(parsed)
    assert parsed == {
        "object": "list",
        "data": [
            {"object": "embedding", "index": 0, "embedding": [0.1, -0.2]},
            {"object": "embedding", "index": 1, "embedding": [1, 0]},
        ],
        "model": "M",
        "usage": {"prompt_tokens": 4, "total_tokens": 4},
    }


def test_base64_is_little_endian_floats() -> None:
    """The vector that Ollama's own tests use."""
    parsed = answered([[0.1, -0.2, 0.3]], encoding_format="BASE64")
    assert parsed["data"][0]["embedding"] == "zczMPc3MTL6amZk+"


@pytest.mark.parametrize("vectors", [[], [[1.0], [2.0]], None, ["no"], [["no"]], [[None]]])
def test_vectors_that_do_not_fit_are_upstreams_fault(vectors: Any) -> None:
    """One vector of numbers for every input, or 502."""
    with pytest.raises(UpstreamError):
        answered(vectors, encoding_format="base64")


def test_upstreams_own_line_becomes_an_answer() -> None:
    """The two dialects fit together, from upstream's bytes to OpenAI's."""
    call = parse()
    line = b'{"model":"m","embeddings":[[0.5]],"prompt_eval_count":2}'
    answer = openai_embeddings.render(call, request_id="r", created=1)
    parsed = orjson.loads(answer.chunk(ollama.parse_chunk(call, line)))
    assert parsed["data"][0]["embedding"] == [0.5]
    assert parsed["usage"]["total_tokens"] == 2
