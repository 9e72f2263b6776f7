"""A small ASGI application for the worker's tests; `TINY_LIFESPAN` plays the faults."""

from __future__ import annotations

import os
import signal
import sys

import trio

mode = os.environ.get("TINY_LIFESPAN", "")


class Tiny:
    """Answers `/` with its process id, streams at `/stream`, breaks its lifespan at `/break`."""

    def __init__(self):
        self.draining = trio.Event()
        self.hastened = trio.Event()
        self.broken = trio.Event()

    def begin_drain(self):
        self.draining.set()

    def hasten_drain(self):
        self.hastened.set()

    async def __call__(self, scope, receive, send):
        if scope["type"] == "lifespan":
            await self.lifespan(receive, send)
            return
        await send({"type": "http.response.start", "status": 200, "headers": []})
        if scope["path"] == "/stream":
            await self.stream(send)
        body = str(os.getpid()).encode()
        await send({"type": "http.response.body", "body": body})
        if scope["path"] == "/break":
            self.broken.set()

    async def stream(self, send):
        await send({"type": "http.response.body", "body": b"begun ", "more_body": True})
        await self.draining.wait()
        await send({"type": "http.response.body", "body": b"draining ", "more_body": True})
        if mode == "stubborn":
            await self.hastened.wait()
            await send({"type": "http.response.body", "body": b"hastened ", "more_body": True})

    async def lifespan(self, receive, send):
        await receive()
        if mode == "fail":
            message = "the database cannot be reached"
            await send({"type": "lifespan.startup.failed", "message": message})
        elif mode == "raise":
            raise OSError("no such store")
        elif mode == "endless":
            signal.signal(signal.SIGTERM, signal.SIG_DFL)  # ends it although it has not begun
            print("the start goes on", file=sys.stderr, flush=True)
            await trio.sleep_forever()
        await send({"type": "lifespan.startup.complete"})
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.breaking)
            await receive()
            nursery.cancel_scope.cancel()
        await send({"type": "lifespan.shutdown.complete"})

    async def breaking(self):
        await self.broken.wait()
        raise OSError("a background task died")


app = Tiny()
