"""One connection's request on the admin listener: its framing screened, its end left to the server.

Hypercorn says `http.disconnect` at the end of every answer, while it is busy closing the
connection or getting it ready for the next request: a cancel would undo that.
"""

from __future__ import annotations

from typing import Any

import trio
from quart_trio.asgi import TrioASGIHTTPConnection, TrioASGIWebsocketConnection

from trio_gateway.core.errors import GatewayError, InvalidCall, NotFound
from trio_gateway.web.admin.errors import DIALECT
from trio_gateway.web.connection import answer
from trio_gateway.web.replies import error_reply
from trio_gateway.web.routes import framing


class AdminConnection(TrioASGIHTTPConnection):
    """Quart-Trio's connection for one request, with a screen in front."""

    _answered = False

    async def __call__(self, receive: Any, send: Any) -> None:
        """Refuse what two readers could read differently, or serve until the client leaves."""
        scope: dict[str, Any] = self.scope  # type: ignore[assignment]
        error = framing(scope["headers"])
        if not scope["raw_path"].startswith(b"/"):
            error = InvalidCall("The request target must be a path.")
        if error is not None:
            await _refuse(receive, send, error)
            return
        request = self._create_request_from_scope(send)

        async def noting(message: Any) -> None:
            last = message["type"] == "http.response.body" and not message.get("more_body", False)
            self._answered = self._answered or last
            await send(message)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.handle_messages, nursery, request, receive)
            nursery.start_soon(self.handle_request, nursery, request, noting)

    async def handle_messages(  # type: ignore[override]  # as Quart-Trio itself has it
        self, nursery: trio.Nursery, request: Any, receive: Any
    ) -> None:
        """Feed the body; an end of the messages before the answer's is the client's hang-up."""
        while (message := await receive())["type"] == "http.request":
            request.body.append(message.get("body", b""))
            if not message.get("more_body", False):
                request.body.set_complete()
        if not self._answered:
            nursery.cancel_scope.cancel()


class AdminHandshake(TrioASGIWebsocketConnection):
    """A WebSocket's handshake: nothing here speaks it."""

    async def __call__(self, receive: Any, send: Any) -> None:
        """Refuse."""
        await _refuse(receive, send, NotFound("There is nothing here."), "websocket.")


async def _refuse(receive: Any, send: Any, error: GatewayError, prefix: str = "") -> None:
    body, headers = error_reply(DIALECT, error)
    headers |= {"content-length": str(len(body)), "connection": "close"}
    pairs = [(name.encode(), value.encode()) for name, value in headers.items()]
    await answer(receive, send, error.status, body, pairs, prefix)
