"""Strict in, rebuilt out: one body can never be two requests."""

from __future__ import annotations

from typing import Any

import orjson
import pytest

from tests.integration.matrix import MODEL, body_of
from tests.world import open_world
from trio_gateway.web.routes import INFERENCE

FOLDS = {"k": "\u212a", "s": "\u017f"}


def spelled(body):
    """Write a body as JSON."""
    parts = [f"{orjson.dumps(key).decode()}:{orjson.dumps(body[key]).decode()}" for key in body]
    return "{" + ",".join(parts) + "}"


def broken_bodies(path):
    """Return bodies that two readers could read differently, each with the field to blame."""
    body = body_of(path, MODEL)
    good = spelled(body)[:-1]
    text = next(key for key in body if key != "model")
    bodies = {
        "duplicate model": (good + ',"model":"secret-model"}', "model"),
        "duplicate by escape": (good + ',"mo\\u0064el":"secret-model"}', "model"),
        "case twin": (good + ',"MODEL":"secret-model"}', "model"),
        "title twin": (good + ',"Model":"secret-model"}', "model"),
        "twin before": ('{"MODEL":"secret-model",' + good[1:] + "}", "model"),
        "duplicate of the text": (good + f',"{text}":"x"}}', text),
        "twin of the text": (good + f',"{text.upper()}":"x"}}', text),
        "fold twin": (good + f',"{FOLDS["s"]}tream":true}}', "stream"),
        "duplicate stream": (good + ',"stream":true,"stream":false}', "stream"),
        "trailing object": (good + '}{"model":"secret-model"}', None),
        "trailing text": (good + "} x", None),
        "byte order mark": ("\ufeff" + good + "}", None),
        "list": ("[" + good + "}]", None),
        "null": ("null", None),
        "string": (orjson.dumps(good + "}").decode(), None),
        "empty": ("", None),
        "comment": (good + "} // x", None),
        "NaN": (good + ',"temperature":NaN}', None),
        "Infinity": (good + ',"temperature":Infinity}', None),
        "1e400": (good + ',"temperature":1e400}', None),
        "single quotes": (good.replace('"', "'") + "}", None),
        "lone surrogate": (good + ',"user":"\\ud800"}', None),
        "deep": (good + ',"x":' + "[" * 2000 + "]" * 2000 + "}", None),
        "model as list": (spelled(body | {"model": [MODEL]}), "model"),
        "model as object": (spelled(body | {"model": {"name": MODEL}}), "model"),
        "model null": (spelled(body | {"model": None}), "model"),
        "model missing": (spelled({key: body[key] for key in body if key != "model"}), "model"),
        "model empty": (spelled(body | {"model": ""}), "model"),
    }
    if path == "/v1/embeddings":  # which has no such field
        del bodies["fold twin"], bodies["duplicate stream"]
    if path not in {"/api/embed", "/api/embeddings", "/v1/embeddings"}:
        bodies["stream as text"] = (spelled(body | {"stream": "false"}), "stream")
        bodies["stream as number"] = (spelled(body | {"stream": 1}), "stream")
    if path.startswith("/api"):
        bodies["fold twin of keep_alive"] = (good + f',"{FOLDS["k"]}eep_alive":0}}', "keep_alive")
        bodies["options as list"] = (spelled(body | {"options": []}), "options")
        doubled = ',"options":{"seed":1,"seed":2}}'
        bodies["duplicate in options"] = (good + doubled, "options")
    if "chat" in path:
        bodies["duplicate in a message"] = (
            '{"model":"qwen3:8b","messages":[{"role":"user","role":"system","content":"x"}]}',
            "messages",
        )
    if path == "/api/chat":
        bodies["role twin"] = (
            '{"model":"qwen3:8b","messages":[{"role":"user","ROLE":"system","content":"x"}]}',
            "messages[0].role",
        )
    return bodies


async def test_ambiguous_bodies_are_400_and_go_nowhere(world):
    """On every inference route, naming the field where there is one; nothing reaches upstream."""
    wrong = {}
    for path in sorted(INFERENCE):
        for name, (body, param) in broken_bodies(path).items():
            content = body.encode("utf-8", "surrogatepass")
            answer = await world.client.post(path, content=content, headers=world.auth())
            if answer.status_code != 400:
                wrong[path, name] = answer.status_code
                continue
            error = answer.json()["error"]
            told = error["param"] if path.startswith("/v1") else param
            named = param is None or path.startswith("/v1") or f"'{param}'" in error
            if told != param or not named:
                wrong[path, name] = error
            assert "secret-model" not in answer.text
    assert wrong == {}
    assert world.sim.started == 0
    assert await world.ledger() == []


async def test_bodies_in_another_encoding_are_400(world):
    """UTF-16, Latin-1 and broken UTF-8 are no JSON."""
    text = spelled(body_of("/api/chat", MODEL) | {"user": "\u00e9"})
    text = text.replace('"hi"', '"h\u00e9"')
    for content in (
        text.encode("utf-16"),
        text.encode("utf-16-le"),
        text.encode("utf-32"),
        text.encode("latin-1"),
        text.encode() + b"\x00",
        text.encode().replace(b"h", b"\xc0\xaf"),
    ):
        answer = await world.client.post("/api/chat", content=content, headers=world.auth())
        assert answer.status_code == 400
    assert world.sim.started == 0


EXTRAS = {
    "_debug_render_only": True,
    "x_unknown": {"a": [1]},
    "keep_alive": "876000h",
    "user": "someone",
    "store": True,
    "metadata": {"a": "b"},
    "remote_host": "https://evil.com",
    "name": "secret-model",
    "headers": {"x": "y"},
}
OPTIONS = {
    "num_ctx": 10_000_000,
    "num_gpu": 99,
    "main_gpu": 3,
    "num_batch": 9,
    "num_thread": 64,
    "use_mmap": False,
    "low_vram": True,
    "numa": True,
    "num_predict": 7,
    "seed": 4,
    "options": {"seed": 5},
    "x_unknown": 1,
}
CHAT = {"model": MODEL, "messages": [{"role": "user", "content": "hi"}], "keep_alive": "5m"}
SENT: dict[str, dict[str, Any]] = {
    "/api/chat": CHAT | {"stream": True, "options": {"seed": 4, "num_predict": 7}},
    "/api/generate": {
        "model": MODEL,
        "prompt": "hi",
        "stream": True,
        "keep_alive": "5m",
        "options": {"seed": 4, "num_predict": 7},
    },
    "/api/embed": {
        "model": "nomic-embed-text:latest",
        "input": "hi",
        "keep_alive": "5m",
        "options": {"seed": 4},
    },
    "/api/embeddings": {
        "model": "nomic-embed-text:latest",
        "prompt": "hi",
        "keep_alive": "5m",
        "options": {"seed": 4},
    },
    "/v1/chat/completions": CHAT | {"stream": True, "options": {"seed": 4, "num_predict": 7}},
    "/v1/completions": {
        "model": MODEL,
        "prompt": "hi",
        "think": False,
        "stream": True,
        "keep_alive": "5m",
        "options": {"seed": 4, "num_predict": 7},
    },
    "/v1/embeddings": {
        "model": "nomic-embed-text:latest",
        "input": ["hi"],
        "truncate": False,
        "keep_alive": "5m",
    },
}


@pytest.mark.parametrize("pinned", [None, 4096])
async def test_upstream_gets_exactly_the_rebuilt_body(database, redis_url, pinned):
    """Unknown fields, load options and the caller's keep_alive never travel; policy's do."""
    async with open_world(database, redis_url) as world:
        if pinned:
            for model in (MODEL, "nomic-embed-text:latest"):
                await world.models.set(model, {"num_ctx": pinned}, "model.pin")
            while world.gateway.gate.policies.policy(MODEL).num_ctx is None:
                await world.get("/api/version")
        assert SENT.keys() == INFERENCE
        for path, expected in SENT.items():
            body = body_of(path, MODEL) | EXTRAS
            if path.startswith("/api"):
                body["options"] = OPTIONS
            else:
                body |= {"seed": 4, "max_tokens": 7}
            answer = await world.post(path, body)
            assert answer.status_code == 200, answer.text
            generation = world.sim.generations[-1]
            assert generation.path in {path, "/api/chat", "/api/generate", "/api/embed"}
            options = expected.get("options", {}) | ({"num_ctx": pinned} if pinned else {})
            assert generation.body == expected | ({"options": options} if options else {}), path


async def test_load_requests_are_answered_here(world):
    """No prompt: Ollama's own `load` answer, nothing sent, nothing charged; unloading is 403."""
    for path, body in (
        ("/api/chat", {"model": MODEL, "messages": []}),
        ("/api/chat", {"model": MODEL}),
        ("/api/generate", {"model": MODEL, "prompt": ""}),
        ("/api/generate", {"model": MODEL}),
    ):
        answer = await world.post(path, body)
        assert answer.status_code == 200
        loaded = answer.json()
        assert (loaded["done"], loaded["done_reason"], loaded["model"]) == (True, "load", MODEL)
        for keep_alive in (0, 0.0, "0", "0s", "0m0s", "-0s"):
            refused = await world.post(path, body | {"keep_alive": keep_alive})
            assert refused.status_code == 403, keep_alive
        for keep_alive in (-1, "-1", "876000h", "5m", 3600):
            assert (await world.post(path, body | {"keep_alive": keep_alive})).status_code == 200
    for path, body in (
        ("/v1/chat/completions", {"model": MODEL, "messages": []}),
        ("/v1/completions", {"model": MODEL, "prompt": ""}),
        ("/v1/completions", {"model": MODEL}),
    ):
        assert (await world.post(path, body)).status_code == 400
    assert world.sim.started == 0
    assert await world.ledger() == []


async def test_a_caller_cannot_unload_with_a_prompt_either(world):
    """With a prompt `keep_alive: 0` is accepted and overridden by policy."""
    for keep_alive in (0, "0s", -1, "876000h"):
        answer = await world.post(
            "/api/generate", body_of("/api/generate", MODEL) | {"keep_alive": keep_alive}
        )
        assert answer.status_code == 200
    assert {item.body["keep_alive"] for item in world.sim.generations} == {"5m"}
