"""What the gateway is compared with: a bare echo, and the same with plain httpx upstream."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator

import httpx
from quart import Response, request
from quart_trio import QuartTrio

echo = QuartTrio("echo")
relay = QuartTrio("relay")
relay.config["RESPONSE_TIMEOUT"] = None
_client: list[httpx.AsyncClient] = []


@echo.get("/")
@relay.get("/")
async def root() -> str:
    return "ok"


@echo.post("/v1/chat/completions")
async def answer() -> Response:
    return Response(await request.get_data(), content_type="application/json")


@relay.before_serving
async def start() -> None:
    limits = httpx.Limits(max_connections=1000, max_keepalive_connections=1000)
    base_url = os.environ["OLLAMA_BASE_URL"]
    _client.append(httpx.AsyncClient(base_url=base_url, limits=limits, timeout=60))


@relay.post("/v1/chat/completions")
async def forward() -> Response:
    body = (await request.get_json(force=True)) | {}
    if not body.get("stream"):
        reply = await _client[0].post("/api/chat", json=body | {"stream": False})
        return Response(reply.content, content_type="application/json")
    stream = _client[0].stream("POST", "/api/chat", json=body)

    async def pieces() -> AsyncIterator[bytes]:
        async with stream as reply:
            async for line in reply.aiter_lines():
                yield b"data: " + line.encode() + b"\n\n"

    return Response(pieces(), content_type="text/event-stream")
