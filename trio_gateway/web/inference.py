"""The inference routes: one handler for every dialect."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, cast

import trio
from quart import Response, current_app, request

from trio_gateway.core.errors import ClientStalled, EndpointNotAllowed, GatewayError, ShuttingDown
from trio_gateway.dialects.ollama import Preload, preload_answer
from trio_gateway.dialects.table import INFERENCE
from trio_gateway.pipeline.admission import Errand
from trio_gateway.pipeline.exchange import carry
from trio_gateway.web.body import read_body
from trio_gateway.web.credentials import presented_key
from trio_gateway.web.replies import JSON, standing_headers

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from trio_gateway.dialects.table import Rendering
    from trio_gateway.pipeline.exchange import Body, Started
    from trio_gateway.services.live import Leash
    from trio_gateway.web.connection import Request
    from trio_gateway.web.gateway import Gateway

WAITING = b": waiting\n\n"


async def enter(gateway: Gateway, asked: Request) -> Leash:
    """Prove the caller and, in the same step, put the request on a leash."""
    principal = await gateway.tenants.authenticate(presented_key(asked.scope["headers"]))
    asked.leash = asked.stack.enter_context(gateway.live.hold(principal))
    if gateway.draining:
        raise ShuttingDown
    return asked.leash


async def infer() -> Response:
    """Serve one inference call."""
    gateway = cast("Gateway", current_app.gateway)  # type: ignore[attr-defined]
    asked = cast("Request", request._get_current_object())  # type: ignore[attr-defined]  # noqa: SLF001 - the proxy would cost a look-up at every use
    leash = await enter(gateway, asked)
    dialect = INFERENCE[asked.raw_path]
    with leash.cover():
        body = await read_body(asked)
    call = dialect.parse(body)
    if isinstance(call, Preload):
        return _preload(gateway, leash, call)
    rendering = dialect.render(call, request_id=asked.request_id, created=time.time())
    errand = Errand(asked.request_id, leash.principal, call)
    if call.stream and gateway.settings.sse_keepalive and asked.raw_path.startswith("/v1/"):
        return _early_stream(gateway, leash, asked, errand, rendering)
    admission, chunks = await asked.nursery.start(_carry, asked, gateway, leash, errand)
    headers = standing_headers(admission.standing)
    if call.stream:
        return Response(_stream(chunks, rendering), 200, headers, rendering.content_type)
    return Response(await _whole(chunks, rendering), 200, headers, rendering.content_type)


async def _carry(
    asked: Request,
    gateway: Gateway,
    leash: Leash,
    errand: Errand,
    task_status: trio.TaskStatus[Started],
) -> None:
    """Carry the call; a client that takes nothing more is cut off, as no word reaches it."""
    try:
        await carry(gateway.gate, leash, errand, task_status=task_status)
    except ClientStalled:
        asked.reset_client()


def _preload(gateway: Gateway, leash: Leash, preload: Preload) -> Response:
    """Answer a load request here: nothing is sent, nothing is charged."""
    gateway.gate.authorize(leash.principal, preload.model)
    if preload.keep_alive_zero:
        raise EndpointNotAllowed("Unloading a model is not allowed.")
    return Response(preload_answer(preload, created=time.time()), 200, content_type=JSON)


async def _whole(chunks: Body, rendering: Rendering) -> bytes:
    async for item in chunks:
        if isinstance(item, GatewayError):
            raise item
        for chunk in item:
            rendering.absorb(chunk)
    return rendering.body()


async def _stream(chunks: Body, rendering: Rendering) -> AsyncIterator[bytes]:
    done = False
    async for item in chunks:
        if isinstance(item, GatewayError):
            yield rendering.error(item)
            return
        done = item[-1].done
        encoded = b"".join([rendering.chunk(chunk) for chunk in item])
        if encoded:
            yield encoded
    if not done:  # the last word came too late to be sent
        yield rendering.error(ClientStalled())


def _early_stream(
    gateway: Gateway, leash: Leash, asked: Request, errand: Errand, rendering: Rendering
) -> Response:
    """Begin the answer at once and keep it alive with comments until the first token.

    Errors before the first token then arrive as an event inside a 200.
    """
    opened, began = trio.open_memory_channel[Any](1)  # the body, or why there is none

    async def begin() -> None:
        try:
            _, chunks = await asked.nursery.start(_carry, asked, gateway, leash, errand)
        except GatewayError as error:
            gateway.refused_call(error, asked)
            await opened.send(error)
        else:
            await opened.send(chunks)

    async def events() -> AsyncIterator[bytes]:
        asked.nursery.start_soon(begin)
        while True:
            with trio.move_on_after(gateway.settings.sse_keepalive):
                item = await began.receive()
                break
            yield WAITING
        if isinstance(item, GatewayError):
            yield rendering.error(item)
            return
        async for piece in _stream(item, rendering):
            yield piece

    return Response(events(), 200, content_type=rendering.content_type)
