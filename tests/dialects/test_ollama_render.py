"""Native answers out, and the lists of models."""

import orjson
import pytest

from trio_gateway.core.domain import Call, CatalogModel
from trio_gateway.core.errors import ModelNotFound, UpstreamError
from trio_gateway.dialects import ollama
from trio_gateway.dialects.ollama import Preload, parse_chunk, render

REMOTE = {"remote_model": "secret", "remote_host": "https://secret"}
STAMP = "2026-08-21T10:00:00.123456789Z"
METRICS = {
    "total_duration": 9,
    "load_duration": 1,
    "prompt_eval_count": 26,
    "prompt_eval_duration": 3,
    "eval_count": 2,
    "eval_duration": 4,
}


def start(upstream="/api/chat", *, stream=True):
    call = Call(upstream, upstream, " LLaMA3 ", "llama3:latest", {}, stream=stream)
    return call, render(call, request_id="req_1", created=1_755_770_400)


def line(**fields):
    return orjson.dumps({"model": "secret", "created_at": STAMP, **REMOTE, **fields})


def message(**fields):
    return {"role": "assistant", **fields}


CHAT_LINES = [
    line(message=message(content="", thinking="hm"), done=False),
    line(message=message(content="a"), logprobs=[{"token": "a", "logprob": -1.0}], done=False),
    line(
        message=message(content="b", tool_calls=[{"function": {"name": "n", "arguments": {}}}]),
        done=False,
    ),
    line(message=message(content=""), done=True, done_reason="stop", context=[1], **METRICS),
]


def test_a_chat_is_streamed_line_by_line():
    """Each line holds the known fields, the model as requested, and one newline."""
    call, rendering = start()
    lines = [rendering.chunk(parse_chunk(call, item)) for item in CHAT_LINES]
    assert rendering.content_type == "application/x-ndjson"
    assert all(item.endswith(b"\n") and item.count(b"\n") == 1 for item in lines)
    head = {"model": " LLaMA3 ", "created_at": STAMP}
    calls = [{"function": {"name": "n", "arguments": {}}}]
    assert [orjson.loads(item) for item in lines] == [
        {**head, "message": message(content="", thinking="hm"), "done": False},
        {
            **head,
            "message": message(content="a"),
            "done": False,
            "logprobs": [{"token": "a", "logprob": -1.0}],
        },
        {**head, "message": message(content="b", tool_calls=calls), "done": False},
        {**head, "message": message(content=""), "done": True, "done_reason": "stop", **METRICS},
    ]


def test_a_whole_chat_is_the_last_object_with_all_the_text():
    """Content, thinking, calls and logprobs of every chunk; no newline."""
    call, rendering = start(stream=False)
    for item in CHAT_LINES:
        rendering.absorb(parse_chunk(call, item))
    assert rendering.content_type == "application/json; charset=utf-8"
    body = rendering.body()
    assert not body.endswith(b"\n")
    calls = [{"function": {"name": "n", "arguments": {}}}]
    assert orjson.loads(body) == {
        "model": " LLaMA3 ",
        "created_at": STAMP,
        "message": message(content="ab", thinking="hm", tool_calls=calls),
        "done": True,
        "done_reason": "stop",
        **METRICS,
        "logprobs": [{"token": "a", "logprob": -1.0}],
    }


def test_generate_keeps_its_context_and_leaves_out_zeros():
    """Metrics of zero and lies below it are absent; a missing time is the call's own."""
    call, rendering = start("/api/generate")
    first = orjson.loads(rendering.chunk(parse_chunk(call, b'{"response":"a","thinking":"t"}')))
    created = "2025-08-21T10:00:00Z"
    head = {"model": " LLaMA3 ", "created_at": created}
    assert first == {**head, "response": "a", "thinking": "t", "done": False}
    last = b'{"created_at":5,"done":true,"context":[1,"x",2],"eval_count":-4,"load_duration":0}'
    assert orjson.loads(rendering.chunk(parse_chunk(call, last))) == {
        **head,
        "response": "",
        "done": True,
        "context": [1, 2],
    }


@pytest.mark.parametrize("upstream", ["/api/chat", "/api/generate", "/api/embed"])
def test_an_answer_that_never_ended_is_an_error(upstream):
    """No false clean end of a whole answer."""
    call, rendering = start(upstream, stream=False)
    with pytest.raises(UpstreamError):
        rendering.body()
    if upstream != "/api/embed":
        rendering.absorb(parse_chunk(call, b'{"done":false}'))
        with pytest.raises(UpstreamError):
            rendering.body()


def test_embeddings_are_one_object():
    """The model as requested and the metrics; the legacy route has the vector alone."""
    call, rendering = start("/api/embed", stream=False)
    raw = line(embeddings=[[0.5, 1]], total_duration=3, prompt_eval_count=2, secret=1)
    assert orjson.loads(rendering.chunk(parse_chunk(call, raw))) == {
        "model": " LLaMA3 ",
        "embeddings": [[0.5, 1]],
        "total_duration": 3,
        "prompt_eval_count": 2,
    }
    call, rendering = start("/api/embeddings", stream=False)
    rendering.absorb(parse_chunk(call, line(embedding=[0.5])))
    assert rendering.body() == b'{"embedding":[0.5]}'
    assert rendering.content_type == "application/json; charset=utf-8"


def test_errors_are_one_string():
    """As the body of a refusal, and as the last line of a stream."""
    error = ModelNotFound()
    assert orjson.loads(ollama.encode_error(error)) == {"error": error.message}
    assert start()[1].error(error) == ollama.encode_error(error) + b"\n"
    assert start(stream=False)[1].error(error) == ollama.encode_error(error)
    assert start("/api/embed")[1].error(error) == ollama.encode_error(error)


@pytest.mark.parametrize(
    ("endpoint", "answer"),
    [
        ("/api/chat", {"message": message(content=""), "done": True, "done_reason": "load"}),
        ("/api/generate", {"response": "", "done": True, "done_reason": "load"}),
    ],
)
def test_a_preload_is_answered_as_ollama_does(endpoint, answer):
    """done_reason "load", with the model as requested."""
    preload = Preload(endpoint, "LLaMA3", "llama3:latest")
    head = {"model": "LLaMA3", "created_at": "2025-08-21T10:00:00Z"}
    sent = ollama.preload_answer(preload, created=1_755_770_400)
    assert orjson.loads(sent) == {**head, **answer}


def test_a_preload_of_an_embedding_model_has_no_vectors():
    """An empty list, in each route's own shape."""
    sent = ollama.preload_answer(Preload("/api/embed", "M", "m:latest"), created=0)
    assert sent == b'{"model":"M","embeddings":[]}'
    legacy = ollama.preload_answer(Preload("/api/embeddings", "M", "m:latest"), created=0)
    assert legacy == b'{"embedding":[]}'


DETAILS = {
    "parent_model": "/root/secret/blobs/sha256-1",
    "format": "gguf",
    "family": "llama",
    "families": ["llama"],
    "parameter_size": "8B",
    "quantization_level": "Q4_0",
    "context_length": 8192,
    "other": "secret",
}
SHOWN = {
    "parent_model": "",
    "format": "gguf",
    "family": "llama",
    "parameter_size": "8B",
    "quantization_level": "Q4_0",
    "families": ["llama"],
    "context_length": 8192,
}


def test_tags_are_rebuilt_without_remote_fields():
    """The name is spelled as upstream spells it where that is the same model."""
    raw = {
        "name": "LLaMA3:latest",
        "model": "LLaMA3:latest",
        "modified_at": STAMP,
        "size": 5,
        "digest": "d",
        "details": DETAILS,
        "capabilities": ["completion", 5],
        **REMOTE,
    }
    models = [
        CatalogModel("llama3:latest", "d", remote=False, raw=raw),
        CatalogModel("b:latest", "d", remote=True, raw={"name": "other:latest"}),
    ]
    found = orjson.loads(ollama.render_tags(models))["models"]
    assert found[0] == {
        "name": "LLaMA3:latest",
        "model": "LLaMA3:latest",
        "details": SHOWN,
        "modified_at": STAMP,
        "size": 5,
        "digest": "d",
        "capabilities": ["completion"],
    }
    assert (found[1]["name"], found[1]["details"]["families"]) == ("b:latest", [])
    assert ollama.render_tags([]) == b'{"models":[]}'


def test_ps_shows_allowed_models_only():
    """Other tenants' models, and entries without a readable name, are missing."""
    raw = {
        "models": [
            {"name": "LLaMA3:latest", "model": "x", "size": 5, "expires_at": STAMP, **REMOTE},
            {"name": "secret:latest"},
            {"name": "../secret"},
            {"name": 5},
            "secret",
        ]
    }
    sent = ollama.filter_ps(raw, {"llama3:latest"})
    assert b"secret" not in sent
    (entry,) = orjson.loads(sent)["models"]
    assert (entry["name"], entry["model"], entry["size"]) == ("LLaMA3:latest", "LLaMA3:latest", 5)
    assert ollama.filter_ps({}, {"llama3:latest"}) == b'{"models":[]}'


def test_show_tells_what_a_model_is_and_no_secret():
    """No licence, prompt, template, path, table or address."""
    raw = {
        **dict.fromkeys(
            (
                "license",
                "modelfile",
                "parameters",
                "template",
                "system",
                "renderer",
                "parser",
                "requires",
            ),
            "secret",
        ),
        **REMOTE,
        "messages": [{"role": "system", "content": "secret"}],
        "projector_info": {"a": "secret"},
        "tensors": [{"name": "secret"}],
        "details": DETAILS,
        "model_info": {
            "general.architecture": "llama",
            "general.parameter_count": 8_000_000_000,
            "llama.context_length": 8192,
            "llama.rope.freq_base": 1e6,
            "general.source.url": "https://secret",
            "general.path": "C:\\secret",
            "general.description": "secret" * 100,
            "general.tags": ["secret"],
            "tokenizer.ggml.tokens": ["secret"],
            "tokenizer.chat_template": "secret",
        },
        "capabilities": ["completion"],
        "modified_at": STAMP,
    }
    sent = ollama.filter_show(raw)
    assert b"secret" not in sent
    assert orjson.loads(sent) == {
        "details": SHOWN,
        "model_info": {
            "general.architecture": "llama",
            "general.parameter_count": 8_000_000_000,
            "llama.context_length": 8192,
            "llama.rope.freq_base": 1e6,
        },
        "capabilities": ["completion"],
        "modified_at": STAMP,
    }
    assert orjson.loads(ollama.filter_show({"model_info": 5}))["model_info"] == {}
