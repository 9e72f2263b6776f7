"""What the models are: lists and details, filtered to the caller's own."""

from __future__ import annotations

from typing import Any
from urllib.parse import unquote

import orjson
from quart import Response

from trio_gateway import __version__
from trio_gateway.core.errors import CallTooLarge, GatewayError, ModelNotFound
from trio_gateway.core.models import InvalidModelName, canonical
from trio_gateway.dialects import ollama, openai_models
from trio_gateway.pipeline.reading import SHORT
from trio_gateway.web.body import read_body
from trio_gateway.web.inference import entered
from trio_gateway.web.replies import JSON


def _json(body: bytes) -> Response:
    return Response(body, 200, content_type=JSON)


async def tags() -> Response:
    """List the caller's models as Ollama does."""
    gateway, _, leash = await entered()
    return _json(ollama.render_tags(gateway.gate.models(leash.principal)))


async def models() -> Response:
    """List the caller's models as OpenAI does."""
    gateway, _, leash = await entered()
    return _json(openai_models.render_models(gateway.gate.models(leash.principal)))


async def model() -> Response:
    """Show one model as OpenAI does; the name may hold slashes, plain or encoded."""
    gateway, asked, leash = await entered()
    requested = unquote(asked.raw_path.removeprefix("/v1/models/"))
    try:
        name = canonical(requested).full
    except InvalidModelName:
        raise ModelNotFound from None
    gateway.gate.authorize(leash.principal, name)
    found = gateway.gate.catalog.find(name)
    if found is None:
        raise ModelNotFound
    return _json(openai_models.render_model(found[0], requested))


async def running() -> Response:
    """List the caller's models that are loaded, over all backends."""
    gateway, _, leash = await entered()
    names = {model.name for model in gateway.gate.models(leash.principal)}
    merged: list[Any] = []
    failures: list[GatewayError] = []
    with leash.cover():
        for backend in gateway.gate.backends.urls:
            try:
                answer = await gateway.gate.upstream.get_json(backend, "/api/ps")
            except GatewayError as error:
                failures.append(error)
            else:
                entries = answer.get("models")
                merged += entries if isinstance(entries, list) else []
    if len(failures) == len(gateway.gate.backends.urls):
        raise failures[0]
    return _json(ollama.filter_ps({"models": merged}, names))


async def show() -> Response:
    """Show one model without its prompts, template, licence and paths."""
    gateway, asked, leash = await entered()
    with leash.cover():
        body = await read_body(asked)
        if len(body) > SHORT:  # what names a model is no longer
            raise CallTooLarge
        name = ollama.parse_show(body)
        route = gateway.gate.authorize(leash.principal, name)
        question = orjson.dumps({"model": route.upstream_name})
        raw = await gateway.gate.upstream.post_json(route.backends[0], "/api/show", question)
    return _json(ollama.filter_show(raw))


async def version() -> Response:
    """Say the gateway's own version."""
    await entered()
    return _json(orjson.dumps({"version": __version__}))
