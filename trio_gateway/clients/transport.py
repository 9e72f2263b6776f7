"""A lean httpx transport: HTTP/1.1 over trio sockets, framed by httptools.

httpx's own client and pool are two thirds of the cost of a proxied call. This one keeps
httpx's seam, so that anything that is an `httpx.AsyncBaseTransport` can stand in for it.
"""

from __future__ import annotations

import ssl
from typing import TYPE_CHECKING

import httpx
import trio

from trio_gateway.clients.wire import Answer, Connection, connect

if TYPE_CHECKING:
    from typing import Self

Origin = tuple[str, str, int]


class LeanTransport(httpx.AsyncBaseTransport):
    """Sends a request as it is: no redirects, cookies, proxies or decompression.

    `max_idle` bounds the connections kept for each origin, `idle_expiry` is how many seconds
    one is kept. `request.extensions["timeout"]["connect"]` limits connecting; every other
    limit is the caller's cancel scope. Raises the exceptions of httpx.
    """

    def __init__(
        self,
        *,
        tls: ssl.SSLContext | None = None,
        max_idle: int = 64,
        idle_expiry: float = 30.0,
    ) -> None:
        """Without `tls`, https uses the platform's trust store."""
        self._tls = tls
        self._max_idle = max_idle
        self._idle_expiry = idle_expiry
        self._idle: dict[Origin, list[Connection]] = {}
        self._closed = False

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Send the request and return once the head of the answer is there.

        A kept connection that turns out to be dead before one byte came back is replaced by a
        fresh one, once; nothing else is retried.
        """
        message = compose(request, await request.aread())
        origin = _origin(request.url)
        bodiless = request.method == "HEAD"
        kept = self._take(origin)
        if kept is not None:
            answer = Answer(kept, bodiless=bodiless)
            try:
                await answer.head(message)
            except (httpx.NetworkError, httpx.RemoteProtocolError):
                if answer.received:
                    raise
            else:
                return self._response(request, origin, answer)
        answer = Answer(await self._connect(origin, request), bodiless=bodiless)
        await answer.head(message)
        return self._response(request, origin, answer)

    async def aclose(self) -> None:
        """Close the idle connections; those in use close when their answers do."""
        self._closed = True
        for connections in self._idle.values():
            for connection in connections:
                connection.close()
        self._idle.clear()

    @property
    def idle(self) -> int:
        """How many connections are kept, of all origins."""
        return sum(map(len, self._idle.values()))

    async def _connect(self, origin: Origin, request: httpx.Request) -> Connection:
        scheme, host, port = origin
        tls = None
        if scheme == "https":
            tls = self._tls = self._tls or ssl.create_default_context()
        limit = request.extensions.get("timeout", {}).get("connect")
        return await connect(host, port, tls, limit)

    def _response(self, request: httpx.Request, origin: Origin, answer: Answer) -> httpx.Response:
        body = Body(self, origin, answer)
        return httpx.Response(answer.status, headers=answer.headers, stream=body, request=request)

    def _take(self, origin: Origin) -> Connection | None:
        connections = self._idle.get(origin)
        oldest = trio.current_time() - self._idle_expiry
        while connections:
            connection = connections.pop()
            if connection.idle_since >= oldest and not connection.stale():
                return connection
            connection.close()
        return None

    def keep(self, origin: Origin, connection: Connection) -> None:
        """Take a connection back for the next request, and drop those kept for too long."""
        if self._closed:
            connection.close()
            return
        now = trio.current_time()
        connection.idle_since = now
        connections = self._idle.setdefault(origin, [])
        connections.append(connection)
        # The last in is the first out, so that the oldest are in front.
        while connections and (
            len(connections) > self._max_idle or connections[0].idle_since < now - self._idle_expiry
        ):
            connections.pop(0).close()


class Body(httpx.AsyncByteStream):
    """The rest of an answer. It reads only when asked, so that a slow reader slows upstream."""

    def __init__(self, transport: LeanTransport, origin: Origin, answer: Answer) -> None:
        """Own the answer's connection from here on."""
        self._transport = transport
        self._origin = origin
        self._answer = answer
        self._open = True
        self._ended = False

    def __aiter__(self) -> Self:
        """Be the iterator: an async generator would cost a frame for each piece."""
        return self

    async def __anext__(self) -> bytes:
        """Return what has arrived; raises httpx.ReadError or httpx.RemoteProtocolError."""
        if self._ended:
            raise StopAsyncIteration
        if not self._open:
            raise httpx.ReadError("the answer was closed before its end")
        try:
            piece = await self._answer.more()
        except BaseException:
            self._release()
            raise
        if self._answer.complete:
            self._ended = True
            self._release()
        if not piece:
            raise StopAsyncIteration
        return piece

    async def aclose(self) -> None:
        """Keep the connection if the body was read to its end, else close it at once."""
        self._release()

    def _release(self) -> None:
        if not self._open:
            return
        self._open = False
        answer = self._answer
        answer.forget()
        if answer.complete and answer.reusable:
            self._transport.keep(self._origin, answer.connection)
        else:
            answer.connection.close()


def compose(request: httpx.Request, body: bytes) -> bytes:
    """Write the request as bytes: its own headers, and Host and Content-Length.

    Raises httpx.LocalProtocolError for a line break in a header.
    """
    lines = [request.method.encode("ascii") + b" " + request.url.raw_path + b" HTTP/1.1"]
    names = set()
    for name, value in request.headers.raw:
        low = name.lower()
        if low != b"transfer-encoding":  # the body is whole: its length is known
            names.add(low)
            lines.append(name + b": " + value)
    if b"host" not in names:
        lines.insert(1, b"Host: " + request.url.netloc)
    if b"content-length" not in names and (body or request.method not in {"GET", "HEAD"}):
        lines.append(b"Content-Length: %d" % len(body))
    head = b"\r\n".join(lines)
    breaks = len(lines) - 1
    if head.count(b"\n") != breaks or head.count(b"\r") != breaks:
        raise httpx.LocalProtocolError("a header holds a line break")
    return head + b"\r\n\r\n" + body


def _origin(url: httpx.URL) -> Origin:
    if url.scheme not in {"http", "https"} or not url.host:
        raise httpx.UnsupportedProtocol("the URL must begin with http:// or https://")
    return url.scheme, url.host, url.port or (443 if url.scheme == "https" else 80)
