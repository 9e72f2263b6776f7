"""One HTTP/1.1 connection and one answer read from it: bytes, framing, no policy."""

from __future__ import annotations

import math
import socket
from typing import TYPE_CHECKING

import httptools
import httpx
import trio

if TYPE_CHECKING:
    import ssl

READ_SIZE = 64 * 1024
HEAD_LIMIT = 64 * 1024
BROKEN = (OSError, trio.BrokenResourceError, trio.ClosedResourceError)


class Connection:
    """A TCP connection to an origin.

    It works on the plain socket: one wait and one `recv` for each read, no exception on the
    usual way. `close` is immediate and never waits, so that it can be called anywhere, also
    while being cancelled: it is what stops the GPU.
    """

    __slots__ = ("_socket", "idle_since")

    def __init__(self, sock: socket.socket) -> None:
        """Take over a connected, non-blocking socket."""
        self._socket = sock
        self.idle_since = 0.0

    async def receive(self) -> bytes:
        """Return what has arrived, up to 64 KiB, or b"" when upstream has closed."""
        while True:
            await trio.lowlevel.wait_readable(self._socket)
            try:
                return self._socket.recv(READ_SIZE)
            except BlockingIOError:
                continue

    async def send(self, message: bytes) -> None:
        """Send all of it; raises OSError when the connection is gone."""
        rest = memoryview(message)
        while rest:
            try:
                rest = rest[self._socket.send(rest) :]
            except BlockingIOError:
                await trio.lowlevel.wait_writable(self._socket)

    def stale(self) -> bool:
        """Whether the idle connection was closed, or holds bytes that nobody asked for."""
        try:
            self._socket.recv(1, socket.MSG_PEEK)
        except BlockingIOError:
            return False
        except OSError:
            pass
        return True

    def close(self) -> None:
        """Close at once; a second time is nothing."""
        self._socket.close()


class SecureConnection(Connection):
    """The same through TLS."""

    __slots__ = ("_stream",)

    def __init__(self, stream: trio.SSLStream[trio.SocketStream]) -> None:
        """Take over a stream whose handshake is done."""
        self._stream = stream
        self.idle_since = 0.0

    async def receive(self) -> bytes:
        """Return what has arrived, or b"" when upstream has closed."""
        return bytes(await self._stream.receive_some(READ_SIZE))

    async def send(self, message: bytes) -> None:
        """Send all of it; raises BrokenResourceError when the connection is gone."""
        await self._stream.send_all(message)

    def stale(self) -> bool:
        """Whether upstream has closed; TLS may hold tickets unread, so bytes mean nothing."""
        raw = self._stream.transport_stream.socket
        try:
            with socket.socket(fileno=socket.dup(raw.fileno())) as twin:
                return twin.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT) == b""
        except BlockingIOError:
            return False
        except OSError:
            return True

    def close(self) -> None:
        """Close the socket at once, without a farewell."""
        self._stream.transport_stream.socket.close()


async def connect(
    host: str, port: int, tls: ssl.SSLContext | None, limit: float | None
) -> Connection:
    """Connect, with the handshake, within `limit` seconds.

    Raises httpx.ConnectError or httpx.ConnectTimeout.
    """
    stream = None
    try:
        with trio.fail_after(math.inf if limit is None else limit):
            stream = await trio.open_tcp_stream(host, port)
            stream.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            if tls is None:
                plain = socket.socket(fileno=stream.socket.detach())
                plain.settimeout(0)
                return Connection(plain)
            secure = trio.SSLStream(stream, tls, server_hostname=host, https_compatible=True)
            await secure.do_handshake()
            return SecureConnection(secure)
    except trio.TooSlowError as error:
        _drop(stream)
        raise httpx.ConnectTimeout("connecting took too long") from error
    except BROKEN as error:
        _drop(stream)
        raise httpx.ConnectError("cannot connect") from error
    except BaseException:
        _drop(stream)
        raise


def _drop(stream: trio.SocketStream | None) -> None:
    if stream is not None:
        stream.socket.close()


class Answer:
    """One response: its head, then its body, piece by piece and only when asked.

    Premature end of the connection is always an error (httpx.RemoteProtocolError or
    httpx.ReadError), unless the head left the length to the end of the connection. Any
    failure, a cancellation among them, closes the connection.
    """

    def __init__(self, connection: Connection, *, bodiless: bool = False) -> None:
        """`bodiless` is True for the answer to a HEAD request."""
        self.connection = connection
        self.status = 0
        self.headers: list[tuple[bytes, bytes]] = []
        self.received = False  # one byte is enough
        self.complete = False
        self.reusable = False
        self._bodiless = bodiless
        self._headed = False
        self._until_eof = True
        self._parts: list[bytes] = []
        self._silent = 0  # bytes since the last byte of body: bounds heads, extensions, trailers
        self._parser: httptools.HttpResponseParser | None = httptools.HttpResponseParser(self)

    async def head(self, message: bytes) -> None:
        """Send the request, then read until the head of its answer is whole."""
        try:
            try:
                await self.connection.send(message)
            except BROKEN as error:
                raise httpx.WriteError("the connection broke while sending") from error
            while not self._headed:
                await self._feed()
        except BaseException:
            self.connection.close()
            raise

    async def more(self) -> bytes:
        """Return the next piece of the body, b"" at its end."""
        try:
            while not self._parts and not self.complete:
                await self._feed()
        except BaseException:
            self.connection.close()
            raise
        body = b"".join(self._parts)
        self._parts.clear()
        return body

    async def _feed(self) -> None:
        try:
            received = await self.connection.receive()
        except BROKEN as error:
            raise httpx.ReadError("the connection broke while reading") from error
        if not received:
            return self._end()
        self.received = True
        try:
            if self._parser is not None:
                self._parser.feed_data(received)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            if not self.complete:
                raise httpx.RemoteProtocolError("the answer is not HTTP/1.1") from error
            self.reusable = False  # the answer was whole; what followed was not ours
        self._silent = 0 if self._parts else self._silent + len(received)
        if self._silent > HEAD_LIMIT and not self.complete:
            raise httpx.RemoteProtocolError("the answer's head is too long")
        return None

    def _end(self) -> None:
        if not (self._headed and self._until_eof):
            raise httpx.RemoteProtocolError("the connection was closed before the answer's end")
        self.complete = True

    def forget(self) -> None:
        """Let go of the parser, which would otherwise wait for the cycle collector."""
        self._parser = None

    # What follows is called by the parser.

    def on_message_begin(self) -> None:
        """See bytes behind the end: the connection cannot be trusted again."""
        if self.complete:
            self.reusable = False

    def on_header(self, name: bytes, value: bytes) -> None:
        """Keep a field of the head; trailers are dropped."""
        if not self._headed:
            self.headers.append((name, value))

    def on_headers_complete(self) -> None:
        """Take the status, or start over after an interim answer."""
        if self._headed or self._parser is None:
            return
        self.status = self._parser.get_status_code()
        if self.status < 200:
            self.headers.clear()
            return
        self._headed = True
        framing = {b"content-length", b"transfer-encoding"}
        self._until_eof = all(name.lower() not in framing for name, _ in self.headers)
        self.complete = self._bodiless

    def on_body(self, body: bytes) -> None:
        """Collect a piece of the body."""
        if not self.complete:
            self._parts.append(body)

    def on_message_complete(self) -> None:
        """Note the end, and whether the connection may carry another request."""
        if self._headed and not self.complete and self._parser is not None:
            self.complete = True
            self.reusable = self._parser.should_keep_alive()
