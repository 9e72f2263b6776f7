"""The inference routes: one handler for every dialect."""

from __future__ import annotations

import time
from contextlib import aclosing
from typing import TYPE_CHECKING, cast

import trio
from quart import Response, current_app, request

from trio_gateway.core.errors import (
    ClientStalled,
    EndpointNotAllowed,
    GatewayError,
    Overloaded,
    ShuttingDown,
)
from trio_gateway.dialects.ollama import Preload, preload_answer
from trio_gateway.dialects.sse import KEEPALIVE
from trio_gateway.dialects.table import INFERENCE
from trio_gateway.pipeline.admission import Errand
from trio_gateway.pipeline.exchange import Item, carry
from trio_gateway.pipeline.reading import SHORT, read_apart
from trio_gateway.web.body import read_body, refuse_encoding
from trio_gateway.web.credentials import presented_key
from trio_gateway.web.replies import JSON, standing_headers

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator

    from trio_gateway.core.domain import Call, Chunk
    from trio_gateway.core.timeline import Timeline
    from trio_gateway.dialects.table import Dialect, Rendering
    from trio_gateway.pipeline.exchange import Begun, Body, Heard
    from trio_gateway.services.live import Leash
    from trio_gateway.web.connection import Request
    from trio_gateway.web.gateway import Gateway

READING_LIMIT = 10.0  # seconds that a long body may wait for others to be read


async def enter(gateway: Gateway, asked: Request) -> Leash:
    """Prove the caller and, in the same step, put the request on a leash."""
    principal = await gateway.tenants.authenticate(presented_key(asked.scope["headers"]))
    asked.leash = asked.stack.enter_context(gateway.live.hold(principal, asked.request_id))
    asked.timeline.authenticated = trio.current_time()
    if gateway.refusing.is_set():
        raise ShuttingDown
    refuse_encoding(asked)
    return asked.leash


async def entered() -> tuple[Gateway, Request, Leash]:
    """Return what a handler works with, once the caller is proved."""
    gateway = cast("Gateway", current_app.gateway)  # type: ignore[attr-defined]
    asked = cast("Request", request._get_current_object())  # type: ignore[attr-defined]  # noqa: SLF001 - the proxy would cost a look-up at every use
    return gateway, asked, await enter(gateway, asked)


async def infer() -> Response:
    """Serve one inference call."""
    gateway, asked, leash = await entered()
    dialect, timeline = INFERENCE[asked.raw_path], _timeline(gateway, asked)
    with leash.cover():
        body = await read_body(asked)
    timeline.received = trio.current_time()
    call = dialect.parse(body) if len(body) <= SHORT else await _read_long(leash, dialect, body)
    timeline.parsed = trio.current_time()
    if isinstance(call, Preload):
        return _preload(gateway, leash, call)
    rendering = dialect.render(call, request_id=asked.request_id, created=time.time())
    errand = Errand(asked.request_id, leash.principal, call, timeline=timeline)
    if call.stream and gateway.settings.sse_keepalive and asked.raw_path.startswith("/v1/"):
        return _early_stream(gateway, leash, asked, errand, rendering)
    chunks = _set_off(asked, gateway, leash, errand)
    begun = await _begun(chunks)
    headers = standing_headers(begun.standing)
    if call.stream:
        return Response(_stream(begun, chunks, rendering), 200, headers, rendering.content_type)
    return Response(await _whole(begun, chunks, rendering), 200, headers, rendering.content_type)


async def _read_long(leash: Leash, dialect: Dialect, body: bytes) -> Call | Preload:
    with leash.cover() as cover:
        cover.allow(READING_LIMIT, Overloaded)
        return await read_apart(dialect.parse, body)


def _timeline(gateway: Gateway, asked: Request) -> Timeline:
    """Return the request's timeline, as that of a call; a caller's trace is read if one is made."""
    timeline = asked.timeline
    timeline.endpoint = asked.raw_path
    if gateway.observer.tracing is not None:
        named = [value for name, value in asked.scope["headers"] if name == b"traceparent"]
        timeline.parent = named[0] if len(named) == 1 else b""
        timeline.request_id = asked.request_id
    return timeline


def _set_off(asked: Request, gateway: Gateway, leash: Leash, errand: Errand) -> Body:
    """Carry the call in a task of its own."""
    send, receive = trio.open_memory_channel[Item](0)
    asked.nursery.start_soon(_carry, asked, gateway, leash, errand, send)
    return receive


async def _carry(
    asked: Request, gateway: Gateway, leash: Leash, errand: Errand, send: Heard
) -> None:
    """Carry the call; a client that takes nothing more is cut off, as no word reaches it."""
    try:
        await carry(gateway.gate, leash, errand, send)
    except ClientStalled:
        asked.reset_client()


async def _begun(chunks: Body) -> Begun:
    """Wait for the beginning of the answer, or raise why there is none."""
    item = await chunks.receive()
    if isinstance(item, GatewayError):
        try:
            raise item
        finally:
            del item  # see `carry`
    return cast("Begun", item)


def _preload(gateway: Gateway, leash: Leash, preload: Preload) -> Response:
    """Answer a load request here: nothing is sent, nothing is charged."""
    gateway.gate.authorize(leash.principal, preload.model)
    if preload.keep_alive_zero:
        raise EndpointNotAllowed("Unloading a model is not allowed.")
    return Response(preload_answer(preload, created=time.time()), 200, content_type=JSON)


async def _whole(begun: Begun, chunks: Body, rendering: Rendering) -> bytes:
    batch = begun.chunks
    while True:
        for chunk in batch:
            rendering.absorb(chunk)
        try:
            item = await chunks.receive()
        except trio.EndOfChannel:
            return rendering.body()
        if isinstance(item, GatewayError):
            try:
                raise item
            finally:
                del item
        batch = cast("list[Chunk]", item)


async def _stream(begun: Begun, chunks: Body, rendering: Rendering) -> AsyncGenerator[bytes, None]:
    batch = begun.chunks
    while True:
        encoded = b"".join([rendering.chunk(chunk) for chunk in batch])
        if encoded:
            yield encoded
        try:
            item = await chunks.receive()
        except trio.EndOfChannel:
            break
        if isinstance(item, GatewayError):
            yield rendering.error(item)
            return
        batch = cast("list[Chunk]", item)
    if not batch[-1].done:  # the last word came too late to be sent
        yield rendering.error(ClientStalled())


def _early_stream(
    gateway: Gateway, leash: Leash, asked: Request, errand: Errand, rendering: Rendering
) -> Response:
    """Begin the answer at once and keep it alive with comments until the first token.

    Errors before the first token then arrive as an event inside a 200.
    """

    async def events() -> AsyncIterator[bytes]:
        chunks = _set_off(asked, gateway, leash, errand)
        while True:
            try:
                with trio.move_on_after(gateway.settings.sse_keepalive):
                    begun = await _begun(chunks)
                    break
            except GatewayError as error:
                gateway.refused_call(error, asked)
                yield rendering.error(error)
                return
            yield KEEPALIVE
        async with aclosing(_stream(begun, chunks, rendering)) as pieces:
            async for piece in pieces:
                yield piece  # noqa: ASYNC119 - Quart closes what it sends

    return Response(events(), 200, content_type=rendering.content_type)
