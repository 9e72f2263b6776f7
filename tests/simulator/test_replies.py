"""What the simulated Ollama answers, in process."""

from __future__ import annotations

import math

import orjson
import pytest
import trio

from trio_gateway.simulator.canaries import (
    SECRET_LICENSE,
    SECRET_MODELFILE,
    SECRET_SYSTEM_PROMPT,
    SECRET_TEMPLATE,
    VERSION,
)
from trio_gateway.simulator.script import Script

from .conftest import ask, lines

TOOL = {
    "type": "function",
    "function": {
        "name": "weather",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
    },
}
METRICS = {
    "total_duration",
    "load_duration",
    "prompt_eval_count",
    "prompt_eval_duration",
    "eval_count",
    "eval_duration",
}


async def test_chat_streams_an_echo_with_all_metrics(local):
    """A chat is NDJSON by default: one token a line, then the six metrics."""
    app, client = local
    with trio.fail_after(30):
        answer = await client.post("/api/chat", json=ask("one two"))
    *chunks, final = lines(answer.content)
    assert answer.headers["content-type"] == "application/x-ndjson"
    assert [chunk["message"]["content"] for chunk in chunks] == ["Echo: ", "one ", "two"]
    assert final["done"] is True
    assert final["done_reason"] == "stop"
    assert set(final) >= METRICS
    assert (final["prompt_eval_count"], final["eval_count"]) == (5, 3)
    assert final["model"] == "llama3.2"
    [generation] = app.sim.generations
    assert (generation.end, generation.tokens, generation.status) == ("done", 3, 200)
    assert generation.body["messages"][0]["content"] == "one two"


async def test_generate_answers_in_one_object(local):
    """`stream: false` is a single object without a newline, with a context."""
    _, client = local
    with trio.fail_after(30):
        body = {"model": "llama3.2", "prompt": "hi", "stream": False}
        answer = await client.post("/api/generate", json=body)
    assert answer.headers["content-type"] == "application/json; charset=utf-8"
    assert not answer.content.endswith(b"\n")
    assert answer.json()["response"] == "Echo: hi"
    assert answer.json()["context"]


@pytest.mark.parametrize(
    ("options", "content", "reason"),
    [
        ({"num_predict": 2}, "Echo: one ", "length"),
        ({"num_predict": -1}, "Echo: one two", "stop"),
        ({"stop": [" two"]}, "Echo: one", "stop"),
        ({"num_predict": 2.9, "stop": None}, "Echo: one ", "length"),
    ],
)
async def test_options_limit_the_reply(local, options, content, reason):
    """num_predict and stop are honored, and num_predict is cut to an integer."""
    _, client = local
    with trio.fail_after(30):
        answer = await client.post("/api/chat", json=ask(options=options, stream=False))
    assert answer.json()["message"]["content"] == content
    assert answer.json()["done_reason"] == reason


@pytest.mark.parametrize("place", ["final", "intermediate"])
async def test_tool_calls_come_from_either_producer(local, place):
    """`call NAME` makes a call whose arguments are an object, where the script says."""
    app, client = local
    app.sim.play(Script(tools_in=place))
    with trio.fail_after(30):
        answer = await client.post("/api/chat", json=ask("please call weather", tools=[TOOL]))
    found = lines(answer.content)
    [chunk] = [item for item in found if item["message"].get("tool_calls")]
    [call] = chunk["message"]["tool_calls"]
    assert chunk["done"] is (place == "final")
    assert call["function"] == {"index": 0, "name": "weather", "arguments": {"city": "text"}}
    assert len(call["id"]) == 13
    assert found[-1]["eval_count"] == 1


async def test_thinking_comes_first_and_only_where_a_model_can(local):
    """A thinking model thinks unless told not to; another refuses to."""
    _, client = local
    with trio.fail_after(30):
        thought = await client.post("/api/chat", json=ask(model="qwen3:8b", think=True))
        plain = await client.post("/api/chat", json=ask(model="qwen3:8b", think=False))
        refused = await client.post("/api/chat", json=ask(think=True))
    kinds = ["thinking" in item["message"] for item in lines(thought.content)]
    assert kinds == [True] * 3 + [False] * 4
    assert lines(thought.content)[-1]["eval_count"] == 6
    assert not any("thinking" in item["message"] for item in lines(plain.content))
    assert refused.status_code == 400
    assert refused.json() == {"error": '"llama3.2" does not support thinking'}


async def test_structured_output_is_json(local):
    """Both forms of `format` give a text that is JSON."""
    _, client = local
    schema = {"type": "object", "properties": {"age": {"type": "integer"}}}
    with trio.fail_after(30):
        loose = await client.post("/api/chat", json=ask(format="json", stream=False))
        strict = await client.post("/api/chat", json=ask(format=schema, stream=False))
    assert orjson.loads(loose.json()["message"]["content"]) == {"echo": "one two"}
    assert orjson.loads(strict.json()["message"]["content"]) == {"age": 1}


async def test_logprobs_follow_each_token(local):
    """Every chunk carries the log probabilities of its tokens when asked."""
    _, client = local
    with trio.fail_after(30):
        answer = await client.post("/api/chat", json=ask(logprobs=True, top_logprobs=2))
    *chunks, final = lines(answer.content)
    assert [chunk["logprobs"][0]["token"] for chunk in chunks] == ["Echo: ", "one ", "two"]
    assert all(len(chunk["logprobs"][0]["top_logprobs"]) == 2 for chunk in chunks)
    assert "logprobs" not in final


async def test_embeddings_are_deterministic(local):
    """The same text has the same unit vector, and dimensions shorten it."""
    _, client = local
    with trio.fail_after(30):
        body = {"model": "nomic-embed-text", "input": ["a b", "c", "a b"], "dimensions": 16}
        answer = (await client.post("/api/embed", json=body)).json()
        legacy = await client.post(
            "/api/embeddings", json={"model": "nomic-embed-text", "prompt": "a b"}
        )
    first, other, again = answer["embeddings"]
    assert first == again != other
    assert len(first) == 16
    assert math.isclose(sum(value * value for value in first), 1, rel_tol=1e-5)
    assert answer["prompt_eval_count"] == 5
    assert set(legacy.json()) == {"embedding"}
    assert len(legacy.json()["embedding"]) == 768


async def test_nothing_to_generate_loads_and_unloads(local):
    """Empty messages load the model, keep_alive 0 unloads it, and ps shows which."""
    _, client = local
    empty = {"model": "llama3.2", "messages": []}
    with trio.fail_after(30):
        load = await client.post("/api/chat", json=empty)
        loaded = await client.get("/api/ps")
        unload = await client.post("/api/chat", json=empty | {"keep_alive": 0})
        unloaded = await client.get("/api/ps")
    assert load.json()["done_reason"] == "load"
    assert [model["name"] for model in loaded.json()["models"]] == ["llama3.2:latest"]
    assert unload.json()["done_reason"] == "unload"
    assert unloaded.json() == {"models": []}


async def test_metadata_holds_the_secrets_a_gateway_must_keep(local):
    """Show gives away prompt, template, modelfile and license; version and root answer."""
    _, client = local
    with trio.fail_after(30):
        shown = (await client.post("/api/show", json={"model": "LLAMA3.2"})).json()
        tags = (await client.get("/api/tags")).json()["models"]
        version = (await client.get("/api/version")).json()
        root = await client.get("/")
        head = await client.head("/")
    assert shown["system"] == SECRET_SYSTEM_PROMPT
    assert shown["template"] == SECRET_TEMPLATE
    assert shown["modelfile"] == SECRET_MODELFILE
    assert shown["license"] == SECRET_LICENSE
    assert [model["name"] for model in tags][:2] == ["llama3.2:latest", "qwen3:8b"]
    assert tags[-1]["remote_host"] == "https://ollama.com:443"
    assert version == {"version": VERSION}
    assert root.text == "Ollama is running"
    assert head.status_code == 200


async def test_management_routes_are_noted(local):
    """Whatever reaches a route that changes the store is seen by the test."""
    app, client = local
    with trio.fail_after(30):
        await client.post("/api/pull", json={"model": "x"})
        await client.request("DELETE", "/api/delete", json={"model": "x"})
        await client.head("/api/blobs/sha256:00")
    assert app.sim.management == [
        "POST /api/pull",
        "DELETE /api/delete",
        "HEAD /api/blobs/sha256:00",
    ]


@pytest.mark.parametrize(
    ("path", "body", "status", "text"),
    [
        ("/api/chat", b"", 400, "missing request body"),
        ("/api/chat", b"{}", 400, "model is required"),
        ("/api/generate", b"{}", 404, "model '' not found"),
        ("/api/chat", b'{"model":"no"}', 404, "model 'no' not found"),
        ("/api/embed", b'{"model":"no"}', 404, 'model "no" not found, try pulling it first'),
        ("/api/show", b'{"model":"no"}', 404, "model 'no:latest' not found"),
        (
            "/api/chat",
            b'{"model":"llama3.2","options":{"temperature":"hot"}}',
            500,
            'option "temperature" must be of type float32',
        ),
        (
            "/api/chat",
            b'{"model":"llama3.2","messages":"hi"}',
            400,
            (
                "json: cannot unmarshal string into Go struct field ChatRequest.messages "
                "of type []api.Message"
            ),
        ),
        (
            "/api/chat",
            b'{"model":"llama3.2","logprobs":true,"top_logprobs":21}',
            400,
            "top_logprobs must be between 0 and 20",
        ),
        (
            "/api/chat",
            b'{"model":"nomic-embed-text"}',
            400,
            '"nomic-embed-text" does not support chat',
        ),
    ],
)
async def test_errors_are_in_the_words_of_ollama(local, path, body, status, text):
    """Refusals carry Ollama's status and text."""
    _, client = local
    with trio.fail_after(30):
        answer = await client.post(path, content=body)
    assert (answer.status_code, answer.json()) == (status, {"error": text})


async def test_names_are_read_as_go_reads_them(local):
    """A key in another case counts, and what follows the first value does not."""
    _, client = local
    with trio.fail_after(30):
        answer = await client.post("/api/generate", content=b'{"MODEL":"llama3.2"} trailing')
    assert answer.json()["done_reason"] == "load"


async def test_unknown_paths_and_methods_answer_in_plain_text(local):
    """Like Ollama's router, whose errors are not JSON."""
    _, client = local
    with trio.fail_after(30):
        lost = await client.get("/v1/models")
        wrong = await client.get("/api/chat")
    assert (lost.status_code, lost.text) == (404, "404 page not found")
    assert wrong.status_code == 405
