"""One request on Quart-Trio's seam: screened, numbered, and lending its nursery to the handler.

The nursery is the request's task tree. A hang-up cancels it, be it seen by hypercorn or, where
hypercorn has stopped reading, by the kernel.
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import trio
from quart.utils import encode_headers
from quart.wrappers.response import DataBody
from quart_trio.asgi import TrioASGIHTTPConnection, TrioASGIWebsocketConnection
from quart_trio.wrappers import TrioRequest

from trio_gateway.clients.hangups import abort, server_of, socket_of
from trio_gateway.core.errors import EndpointNotAllowed
from trio_gateway.core.timeline import Timeline
from trio_gateway.pipeline.admission import new_request_id
from trio_gateway.web.feed import Feed
from trio_gateway.web.replies import error_reply
from trio_gateway.web.routes import methods, screen

if TYPE_CHECKING:
    from trio_gateway.core.errors import GatewayError
    from trio_gateway.services.live import Leash

TAKE_IN = 1.0  # seconds for the rest of a body that nobody wants
TAKE_IN_UPLOAD = 10.0  # the same, for an upload of a proved caller
UPLOAD = ("POST", "/v1/files")


class Request(TrioRequest):
    """A request with its task tree."""

    nursery: trio.Nursery
    stack: ExitStack  # left after the nursery
    request_id: str
    timeline: Timeline
    raw_path: str
    client: str | None
    leash: Leash | None
    socket_stream: trio.SocketStream | None
    received: trio.Event  # set when the body is there, all of it
    feed: Feed | None  # where the body of an upload goes
    began: bool = False  # the answer is on its way,
    answered: bool = False  # and its end
    over: bool = False  # the server has said its last word of it

    def reset_client(self) -> None:
        """Cut off a client that takes no bytes."""
        if self.socket_stream is not None:
            abort(self.socket_stream)

    def note_hangup(self) -> None:
        """Remember that the client left, before the nursery is cancelled."""
        if self.leash is not None:
            self.leash.client_left = True

    def hung_up(self) -> None:
        """End the request: the client is gone."""
        self.note_hangup()
        self.nursery.cancel_scope.cancel()


class Connection(TrioASGIHTTPConnection):
    """Quart-Trio's connection for one request, with the gateway's screen in front."""

    async def __call__(self, receive: Any, send: Any) -> None:
        """Refuse, or serve in a nursery that ends with the client."""
        scope: dict[str, Any] = self.scope  # type: ignore[assignment]
        raw_path = scope["raw_path"].decode("latin-1")
        request_id = new_request_id()
        gateway = self.app.gateway  # type: ignore[attr-defined]
        preflight = gateway.cors.preflight(scope) if methods(raw_path) else None
        if preflight is not None:
            pairs = [*preflight, (b"x-request-id", request_id.encode())]
            await answer(receive, send, 204, b"", pairs)
            return
        refusal = screen(scope, raw_path)
        if refusal is not None:
            await _refuse(self.app, scope, receive, send, refusal)
            return
        request: Request = self._create_request_from_scope(send)  # type: ignore[assignment]
        request.request_id, request.raw_path, request.leash = request_id, raw_path, None
        request.timeline = Timeline(trio.current_time())
        request.client = gateway.client_of(scope)
        request.socket_stream, request.received = socket_of(send), trio.Event()
        request.feed = None
        if (scope["method"], raw_path) == UPLOAD:
            settings = gateway.settings
            request.feed = Feed(settings.body_timeout, settings.call_timeout)
        self._gather = getattr(server_of(send), "gather", None)
        with ExitStack() as stack:
            request.stack = stack
            async with trio.open_nursery() as nursery:
                request.nursery = nursery
                if request.socket_stream is not None:
                    watched = gateway.hangups.watch(
                        request.socket_stream.socket.fileno(), request.hung_up
                    )
                    stack.enter_context(watched)
                nursery.start_soon(self.handle_messages, nursery, request, receive)
                nursery.start_soon(self.handle_request, nursery, request, _noting(send, request))
        if not request.over and not request.received.is_set():
            # The server may be waiting to hand over more, and would for ever.
            with trio.move_on_after(TAKE_IN):
                while (await receive())["type"] == "http.request":
                    pass

    async def _send_response(self, send: Any, response: Any) -> None:
        """Send a whole answer in one write, any other as it comes."""
        whole = response.response
        if response.status_code != 200 or not isinstance(whole, DataBody):
            await super()._send_response(send, response)
            return
        if self._gather is not None:
            self._gather()
        headers = encode_headers(response.headers)
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": whole.data, "more_body": False})

    async def handle_messages(  # type: ignore[override]  # as Quart-Trio itself has it
        self, nursery: trio.Nursery, request: Any, receive: Any
    ) -> None:
        """Feed the body; the end of the messages is the client's hang-up."""
        while (message := await receive())["type"] == "http.request":
            if request.feed is not None:
                await request.feed.put(message.get("body", b""))
            elif not request.began:  # nobody reads what comes later
                request.body.append(message.get("body", b""))
            if not message.get("more_body", False):
                if request.feed is not None:
                    request.feed.end()
                request.body.set_complete()
                request.received.set()
        request.over = True
        if request.answered:
            # Hypercorn says this at the end of every answer, while it is busy closing the
            # connection or getting it ready for the next request: a cancel would undo that.
            return
        request.note_hangup()
        nursery.cancel_scope.cancel()


def _noting(send: Any, request: Request) -> Any:
    """Note how far the answer is, and end it when the request has been taken in.

    A connection closed on bytes that nobody read is reset, and an answer that is still on its
    way, such as a 413, is lost.
    """

    async def noted(message: Any) -> None:
        if message["type"] == "http.response.start":
            request.began = True
            if request.feed is not None:
                request.feed.close()
        elif not message.get("more_body", False):
            if not request.received.is_set():
                await send(message | {"more_body": True})
                message = message | {"body": b""}
                # An upload's client may not look for the answer before it has sent it all.
                known = request.feed is not None and request.leash is not None
                with trio.move_on_after(TAKE_IN_UPLOAD if known else TAKE_IN):
                    await request.received.wait()
            request.answered = True
        await send(message)

    return noted


class Handshake(TrioASGIWebsocketConnection):
    """A WebSocket's handshake: no route speaks it, so each is an unknown endpoint."""

    async def __call__(self, receive: Any, send: Any) -> None:
        """Refuse."""
        scope: dict[str, Any] = {**self.scope, "method": "GET"}
        await _refuse(self.app, scope, receive, send, EndpointNotAllowed())


async def _refuse(
    app: Any, scope: dict[str, Any], receive: Any, send: Any, error: GatewayError
) -> None:
    """Answer before anything of the request is looked at."""
    raw_path, request_id = scope["raw_path"].decode("latin-1"), new_request_id()
    client = app.gateway.client_of(scope)
    app.gateway.refused(error, scope["method"], raw_path, client, request_id)
    body, headers = error_reply(raw_path, error)
    headers |= {"x-request-id": request_id, "content-length": str(len(body))}
    if scope["http_version"].startswith("1"):
        # Closed afterwards: whatever follows on this connection was never agreed upon.
        headers["connection"] = "close"
    pairs = [(name.encode(), value.encode()) for name, value in headers.items()]
    prefix = "" if scope["type"] == "http" else "websocket."
    await answer(receive, send, error.status, body, pairs, prefix)


async def answer(
    receive: Any,
    send: Any,
    status: int,
    body: bytes,
    headers: list[tuple[bytes, bytes]],
    prefix: str = "",
) -> None:
    """Send a whole answer; `prefix` is `websocket.` where a handshake is refused."""
    kind = f"{prefix}http.response.body"
    await send({"type": f"{prefix}http.response.start", "status": status, "headers": headers})
    await send({"type": kind, "body": body, "more_body": True})
    with trio.move_on_after(TAKE_IN):
        while (await receive()).get("more_body", False):
            pass
    await send({"type": kind, "body": b"", "more_body": False})
