"""The four inference routes."""

from __future__ import annotations

import hashlib
import math
import struct
from typing import TYPE_CHECKING, Any

import trio
from quart import Blueprint, Response, current_app, request

from trio_gateway.simulator import wire
from trio_gateway.simulator.ask import (
    CHAT,
    GENERATE,
    Ask,
    check_keep_alive,
    check_options,
    understand,
    words,
)
from trio_gateway.simulator.canaries import SECRET_SIGNIN_URL
from trio_gateway.simulator.frames import Frames
from trio_gateway.simulator.reply import Reply, make_reply
from trio_gateway.simulator.stream import DEFAULT_ERROR, Died, Stream

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from trio_gateway.simulator.models import Model
    from trio_gateway.simulator.script import Script
    from trio_gateway.simulator.state import Generation, Simulation

blueprint = Blueprint("inference", __name__)

EMBED = {
    "model": "string",
    "input": "interface {}",
    "truncate": "bool",
    "dimensions": "int",
    "keep_alive": "interface {}",
    "options": "map[string]interface {}",
}
EMBEDDINGS = {
    "model": "string",
    "prompt": "string",
    "keep_alive": "interface {}",
    "options": "map[string]interface {}",
}
_TEXTS = {
    401: "unauthorized",
    403: "ollama cloud is disabled: remote model is unavailable",
    404: "model not found",
    429: "too many requests",
    500: "model runner has unexpectedly stopped, this may be due to resource limitations",
    503: "server busy, please try again.  maximum pending requests exceeded",
}


@blueprint.post("/api/chat")
async def chat() -> Response:
    """Chat."""
    return await _generate("ChatRequest", CHAT)


@blueprint.post("/api/generate")
async def generate() -> Response:
    """Complete a prompt."""
    return await _generate("GenerateRequest", GENERATE)


@blueprint.post("/api/embed")
async def embed() -> Response:
    """Embed one text or several, normalised."""
    body, script = await _read("EmbedRequest", EMBED)
    sim, generation = _here()
    given = body.get("input", [])
    texts = [given] if isinstance(given, str) and given else given or []
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise wire.Refusal(400, "invalid input type")
    model = _embedder(body, sim)
    tokens = sum(words(text) for text in texts)
    if body.get("truncate") is False and any(words(text) > model.context_length for text in texts):
        raise wire.Refusal(400, "the input length exceeds the context length")
    vectors = [_unit(_vector(text, model.embedding_length)) for text in texts]
    size = body.get("dimensions", 0)
    if 0 < size < model.embedding_length:
        vectors = [_unit(vector[:size]) for vector in vectors]
    answer: dict[str, Any] = {"model": body["model"], "embeddings": vectors}
    answer |= {"total_duration": 1_000_000, "load_duration": 500_000}
    if tokens:
        answer["prompt_eval_count"] = tokens
    return _json(generation, script, wire.encode(_changed(answer, script)))


@blueprint.post("/api/embeddings")
async def embeddings() -> Response:
    """Embed one text, not normalised, without counts."""
    body, script = await _read("EmbeddingRequest", EMBEDDINGS)
    sim, generation = _here()
    if not body.get("model"):
        raise wire.Refusal(400, "model is required")
    model = _embedder(body, sim)
    text = body.get("prompt", "")
    answer = {"embedding": _vector(text, model.embedding_length) if text else []}
    return _json(generation, script, wire.encode(_changed(answer, script)))


async def obey(script: Script) -> Response | None:
    """Do what a script wants before a reply: wait, fail (Refusal) or redirect (returned)."""
    if script.never_answers:
        await trio.sleep_forever()
    if script.head_delay:
        await trio.sleep(script.head_delay)
    if script.status is None:
        return None
    if 300 <= script.status < 400:
        location = {"Location": script.location, **script.headers}
        return Response("", status=script.status, headers=location)
    text = script.error_text or _TEXTS.get(script.status, "scripted error")
    more = {"signin_url": SECRET_SIGNIN_URL} if script.status == 401 else {}
    body = wire.encode({"error": text, **more})
    return Response(body, script.status, script.headers, content_type=wire.JSON)


def _here() -> tuple[Simulation, Generation]:
    sim: Simulation = current_app.sim  # type: ignore[attr-defined]
    generation: Generation = request.scope["sim.generation"]  # type: ignore[typeddict-item]
    return sim, generation


async def _read(struct_name: str, kinds: dict[str, str]) -> tuple[dict[str, Any], Script]:
    """Read and check the body, and obey the script; raise Refusal or Scripted."""
    sim, generation = _here()
    raw = await request.get_data(cache=False, as_text=False, parse_form_data=False)
    body = wire.decode(raw, struct_name, kinds)
    sim.keep(generation, body, len(raw))
    script = sim.choose(generation.path, generation.model)
    answer = await obey(script)
    if answer is not None:
        generation.outcome = "failed"
        raise Scripted(answer)
    return body, script


class Scripted(Exception):
    """Carries the answer that a script gives in place of a reply."""

    def __init__(self, response: Response) -> None:
        """Keep the response."""
        self.response = response
        super().__init__("scripted answer")


async def _generate(struct_name: str, kinds: dict[str, str]) -> Response:
    body, script = await _read(struct_name, kinds)
    sim, generation = _here()
    ask = understand(generation.path, body, sim)
    reply = make_reply(ask, script)
    if ask.empty == "unload":
        sim.loaded.pop(ask.model.name, None)
    else:
        sim.loaded[ask.model.name] = ask.model
    frames = Frames(ask, script, reply)
    if ask.empty or not ask.stream:
        return await _whole(ask, script, reply, frames)
    if script.instant:
        generation.outcome = "done"
        generation.tokens = reply.tokens
        data = b"".join(map(frames.line, reply.pieces)) + frames.final_line()
        return _chunked(Response(data, headers=script.headers, content_type=wire.NDJSON))
    stream = Stream(sim, generation, script, reply, frames)
    return Response(stream.writes(), headers=script.headers, content_type=wire.NDJSON)


async def _whole(ask: Ask, script: Script, reply: Reply, frames: Frames) -> Response:
    sim, generation = _here()
    if script.flood:
        await trio.sleep_forever()
    await trio.sleep(script.token_gap * len(reply.pieces))
    if script.held:
        await sim.replaced(script)
    if script.ending == "error":
        raise wire.Refusal(500, script.error_text or DEFAULT_ERROR)
    data = frames.whole(done=script.ending == "done")
    generation.tokens = reply.tokens
    if script.ending == "die" and not ask.empty:
        generation.outcome = "failed"
        half = _half(data)
        return Response(half, headers=script.headers, content_type=wire.JSON)
    return _json(generation, script, data)


async def _half(data: bytes) -> AsyncIterator[bytes]:
    yield data[: len(data) // 2]
    raise Died("the script ends here")


def _json(generation: Generation, script: Script, data: bytes) -> Response:
    generation.outcome = "done" if script.ending == "done" else "failed"
    if script.ending == "die":
        return Response(_half(data), headers=script.headers, content_type=wire.JSON)
    return Response(data, headers=script.headers, content_type=wire.JSON)


def _chunked(response: Response) -> Response:
    # Ollama never announces the length of a stream.
    del response.headers["Content-Length"]
    return response


def _changed(answer: dict[str, Any], script: Script) -> dict[str, Any]:
    changed = answer | script.final
    return {name: value for name, value in changed.items() if value is not None}


def _embedder(body: dict[str, Any], sim: Simulation) -> Model:
    requested = body.get("model", "")
    if not requested:
        raise wire.Refusal(404, "model '' not found")
    check_options(body.get("options", {}))
    check_keep_alive(body.get("keep_alive"))
    model = sim.find(requested)
    if model is None:
        raise wire.Refusal(404, f'model "{requested}" not found, try pulling it first')
    sim.loaded[model.name] = model
    return model


def _vector(text: str, size: int) -> list[float]:
    raw = hashlib.shake_256(text.encode("utf-8", "replace")).digest(size * 2)
    return [value / 4096 for value in struct.unpack(f"<{size}h", raw)]


def _unit(vector: list[float]) -> list[float]:
    length = math.sqrt(sum(value * value for value in vector)) or 1.0
    return [round(value / length, 8) for value in vector]
