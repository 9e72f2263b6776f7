"""The read-only routes of the simulated Ollama."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from quart import Blueprint, Response, current_app, request

from trio_gateway.simulator import wire
from trio_gateway.simulator.canaries import (
    SECRET_LICENSE,
    SECRET_MESSAGE,
    SECRET_MODELFILE,
    SECRET_PARAMETERS,
    SECRET_SYSTEM_PROMPT,
    SECRET_TEMPLATE,
    VERSION,
)
from trio_gateway.simulator.inference import obey
from trio_gateway.simulator.models import canonical

if TYPE_CHECKING:
    from trio_gateway.simulator.models import Model
    from trio_gateway.simulator.state import Simulation

blueprint = Blueprint("metadata", __name__)

SHOW = {
    "model": "string",
    "name": "string",
    "verbose": "bool",
    "system": "string",
    "options": "map[string]interface {}",
}


@blueprint.before_request
async def follow_the_script() -> Response | None:
    """Apply a script that names this path."""
    return await obey(_sim().choose(request.path, None))


@blueprint.get("/")
async def root() -> Response:
    """Say that the server runs."""
    return Response("Ollama is running", content_type="text/plain; charset=utf-8")


@blueprint.get("/api/version")
async def version() -> Response:
    """Tell the version."""
    return _json({"version": VERSION})


@blueprint.get("/api/tags")
async def tags() -> Response:
    """List the models, newest first."""
    models = sorted(_sim().models.values(), key=lambda model: model.modified_at, reverse=True)
    return _json({"models": [_entry(model) for model in models]})


@blueprint.get("/api/ps")
async def ps() -> Response:
    """List the models in memory: those used since the start and not unloaded."""
    expires = (datetime.now(UTC) + timedelta(minutes=5)).isoformat()
    running = [
        {
            "name": model.name,
            "model": model.name,
            "size": model.size,
            "digest": model.digest,
            "details": _details(model),
            "expires_at": expires,
            "size_vram": model.size,
            "context_length": model.context_length,
        }
        for model in _sim().loaded.values()
    ]
    return _json({"models": running})


@blueprint.post("/api/show")
async def show() -> Response:
    """Tell everything about a model, secrets and all."""
    body = wire.decode(
        await request.get_data(cache=False, as_text=False, parse_form_data=False),
        "ShowRequest",
        SHOW,
    )
    name = body.get("model") or body.get("name") or ""
    if not name:
        raise wire.Refusal(400, "model is required")
    model = _sim().find(name)
    if model is None:
        raise wire.Refusal(404, f"model '{canonical(name)}' not found")
    shown: dict[str, Any] = {
        "license": SECRET_LICENSE,
        "modelfile": SECRET_MODELFILE,
        "parameters": f'stop "{SECRET_PARAMETERS}"',
        "template": SECRET_TEMPLATE,
        "system": SECRET_SYSTEM_PROMPT,
        "details": _details(model),
        "messages": [{"role": "user", "content": SECRET_MESSAGE}],
        "model_info": {
            "general.architecture": model.family,
            "general.parameter_count": 8_030_261_248,
            f"{model.family}.context_length": model.context_length,
            f"{model.family}.embedding_length": model.embedding_length,
            "tokenizer.ggml.tokens": None,
        },
        "capabilities": list(model.capabilities),
        "modified_at": model.modified_at,
    }
    return _json(shown | _remote(model))


def _sim() -> Simulation:
    sim: Simulation = current_app.sim  # type: ignore[attr-defined]
    return sim


def _entry(model: Model) -> dict[str, Any]:
    return {
        "name": model.name,
        "model": model.name,
        **_remote(model),
        "modified_at": model.modified_at,
        "size": model.size,
        "digest": model.digest,
        "details": _details(model),
        "capabilities": list(model.capabilities),
    }


def _details(model: Model) -> dict[str, Any]:
    return {
        "parent_model": "",
        "format": "gguf",
        "family": model.family,
        "families": [model.family],
        "parameter_size": model.parameter_size,
        "quantization_level": "Q4_K_M",
        "context_length": model.context_length,
        "embedding_length": model.embedding_length,
    }


def _remote(model: Model) -> dict[str, Any]:
    if model.remote_host is None:
        return {}
    return {"remote_model": model.remote_model, "remote_host": model.remote_host}


def _json(value: dict[str, Any]) -> Response:
    return Response(wire.encode(value), content_type=wire.JSON)
