"""A small ASGI application in the place of the admin listener: tells what it was given."""

from __future__ import annotations

import json
import os

NAMES = ("TRIO_GATEWAY_ADMIN_TOKEN", "PROMETHEUS_MULTIPROC_DIR", "_TRIO_GATEWAY_SLOT")


async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        await receive()
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await send({"type": "lifespan.shutdown.complete"})
        return
    told = {name: os.environ.get(name) for name in NAMES} | {"pid": os.getpid()}
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": json.dumps(told).encode()})
