"""The lean transport over real sockets: framing, reuse, truncation, prompt closing."""

from __future__ import annotations

import ssl
import subprocess
from contextlib import asynccontextmanager
from functools import partial

import httpx
import pytest
import trio
import trio.testing

from deploy.staging.programs import free_port
from trio_gateway.clients.transport import LeanTransport, compose

OK = b"HTTP/1.1 200 OK\r\n"
HELLO = OK + b"Content-Length: 5\r\n\r\nhello"


class Server:
    """A scripted server: each connection runs `script(stream, number)`."""

    def __init__(self, script):
        self.script = script
        self.connections = 0
        self.requests = []
        self.gone = trio.Event()
        self.url = ""

    async def __call__(self, stream):
        self.connections += 1
        async with stream:
            try:
                await self.script(self, stream, self.connections)
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                self.gone.set()

    async def request(self, stream):
        """Read one request, or return False at the end of the connection."""
        got = b""
        while True:
            head, mark, body = got.partition(b"\r\n\r\n")
            if mark:
                length = 0
                for line in head.lower().split(b"\r\n"):
                    if line.startswith(b"content-length:"):
                        length = int(line.split(b":")[1])
                if len(body) >= length:
                    self.requests.append(got)
                    return True
            try:
                more = await stream.receive_some()
            except trio.BrokenResourceError:
                more = b""
            if not more:
                self.gone.set()
                return False
            got += more


@asynccontextmanager
async def serving(script):
    """Run a scripted server on loopback, all under a time limit."""
    server = Server(script)
    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            listeners = await nursery.start(partial(trio.serve_tcp, server, 0, host="127.0.0.1"))
            server.url = f"http://127.0.0.1:{listeners[0].socket.getsockname()[1]}"
            yield server
            nursery.cancel_scope.cancel()


def answering(*pieces):
    """Script: answer every request with the same pieces, each in a write of its own."""

    async def script(server, stream, _):
        while await server.request(stream):
            for piece in pieces:
                await stream.send_all(piece)

    return script


def pieces_of(response):
    """Iterate over the body's pieces as they arrive."""
    assert isinstance(response.stream, httpx.AsyncByteStream)
    return aiter(response.stream)


async def ask(transport, url, **options):
    """Send one POST and read the whole answer."""
    request = httpx.Request("POST", url + "/x", content=b"{}", **options)
    response = await transport.handle_async_request(request)
    try:
        return response.status_code, b"".join([piece async for piece in pieces_of(response)])
    finally:
        await response.aclose()


@pytest.mark.parametrize(
    "pieces",
    [
        [HELLO],
        [HELLO[:3], HELLO[3:20], HELLO[20:-2], HELLO[-2:]],
        [OK + b"Transfer-Encoding: chunked\r\n\r\n2\r\nhe\r\n3\r\nllo\r\n0\r\n\r\n"],
        [
            OK + b"Transfer-Encoding: chunked\r\n\r\n2\r",
            b"\nhe\r\n3\r\nllo\r\n0\r\nT: 1\r\n",
            b"\r\n",
        ],
        [b"HTTP/1.1 103 Early Hints\r\nLink: a\r\n\r\n", HELLO],
        [b"HTTP/1.1 100 Continue\r\n\r\n" + HELLO],
    ],
)
async def test_every_framing_of_a_body_reads_the_same_and_keeps_the_connection(pieces):
    """Length or chunks, in one read or many, after interim answers: one body, one connection."""
    async with serving(answering(*pieces)) as server, LeanTransport() as transport:
        for _ in range(3):
            assert await ask(transport, server.url) == (200, b"hello")
        assert server.connections == 1
        assert transport.idle == 1


async def test_a_request_carries_the_given_headers_and_nothing_else():
    """Host and Content-Length are the only fields a request gains."""
    async with serving(answering(HELLO)) as server, LeanTransport() as transport:
        await ask(transport, server.url, headers=[(b"X-One", b"1")])
        host = server.url.removeprefix("http://").encode()
        head, _, body = server.requests[0].partition(b"\r\n\r\n")
        expected = [b"POST /x HTTP/1.1", b"Host: " + host, b"X-One: 1", b"Content-Length: 2"]
        assert sorted(head.split(b"\r\n")) == sorted(expected)
        assert body == b"{}"


async def test_a_streamed_request_body_is_sent_with_its_length():
    """A body given as a stream is read first, so that it could be sent twice."""

    async def body():
        yield b"a"
        yield b"b"

    async with serving(answering(HELLO)) as server, LeanTransport() as transport:
        request = httpx.Request("POST", server.url, content=body())
        await (await transport.handle_async_request(request)).aread()
        assert server.requests[0].endswith(b"Content-Length: 2\r\n\r\nab")
        assert b"ransfer-" not in server.requests[0]


@pytest.mark.parametrize("field", [(b"X", b"a\r\nY: b"), (b"X\nY", b"a"), (b"X", b"a\r")])
def test_a_line_break_in_a_header_is_refused(field):
    """A header can never become two."""
    request = httpx.Request("POST", "http://a/", headers=[field])
    with pytest.raises(httpx.LocalProtocolError):
        compose(request, b"")


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        OK[:9],
        OK + b"Content-Length: 9\r\n\r\nhello",
        OK + b"Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n",
        OK + b"Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n",
        OK + b"Transfer-Encoding: chunked\r\n\r\n9\r\nhello",
        OK + b"Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\nzz\r\n",
        OK + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\nhello",
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\nhi",
        b"not http at all\r\n\r\n",
    ],
)
async def test_a_truncated_or_broken_answer_is_an_error_and_never_a_clean_end(answer):
    """Whatever stands where the answer breaks, the reader is told, and once more if it asks."""

    async def script(server, stream, _):
        await server.request(stream)
        await stream.send_all(answer)

    async with serving(script) as server, LeanTransport() as transport:
        with pytest.raises((httpx.RemoteProtocolError, httpx.ReadError)):
            await ask(transport, server.url)
        assert transport.idle == 0


async def test_a_body_without_length_ends_with_the_connection():
    """The one framing whose end is the connection's end, and the connection is not kept."""

    async def script(server, stream, _):
        await server.request(stream)
        await stream.send_all(OK + b"\r\nhello")

    async with serving(script) as server, LeanTransport() as transport:
        assert await ask(transport, server.url) == (200, b"hello")
        assert transport.idle == 0


@pytest.mark.parametrize(
    "answer",
    [OK + b"Connection: close\r\nContent-Length: 5\r\n\r\nhello", HELLO + HELLO, HELLO + b"x"],
)
async def test_a_connection_with_anything_odd_about_its_end_is_not_kept(answer):
    """A close announced, or bytes behind the answer: the next request gets a new connection."""
    async with serving(answering(answer)) as server, LeanTransport() as transport:
        assert await ask(transport, server.url) == (200, b"hello")
        assert transport.idle == 0


@pytest.mark.parametrize("where", ["head", "trailer", "extension"])
async def test_an_endless_head_is_cut_off(where):
    """Neither head, trailers nor chunk extensions can fill memory."""
    starts = {
        "head": OK + b"X: ",
        "trailer": OK + b"Transfer-Encoding: chunked\r\n\r\n0\r\nX: ",
        "extension": OK + b"Transfer-Encoding: chunked\r\n\r\n5;a=",
    }

    async def script(server, stream, _):
        await server.request(stream)
        await stream.send_all(starts[where])
        while True:
            await stream.send_all(b"y" * 8192)

    async with serving(script) as server, LeanTransport() as transport:
        with pytest.raises(httpx.RemoteProtocolError):
            await ask(transport, server.url)
        await server.gone.wait()


async def test_a_kept_connection_that_died_is_replaced_without_a_word():
    """Closed while idle: seen before the next request is sent, nothing is lost."""

    async def script(server, stream, number):
        await server.request(stream)
        await stream.send_all(HELLO)
        if number > 1:
            await server.request(stream)

    async with serving(script) as server, LeanTransport() as transport:
        assert await ask(transport, server.url) == (200, b"hello")
        await trio.testing.wait_all_tasks_blocked()
        assert await ask(transport, server.url) == (200, b"hello")
        assert server.connections == 2


async def test_a_kept_connection_that_closes_on_the_request_is_retried_once():
    """No byte came back on a kept connection: one fresh one is tried, and no third."""

    async def script(server, stream, number):
        assert await server.request(stream)
        if number == 1:
            await stream.send_all(HELLO)
            assert await server.request(stream)

    async with serving(script) as server, LeanTransport() as transport:
        assert await ask(transport, server.url) == (200, b"hello")
        with pytest.raises(httpx.RemoteProtocolError):
            await ask(transport, server.url)
        assert server.connections == 2
        assert len(server.requests) == 3


async def test_nothing_is_retried_once_a_byte_was_received():
    """A kept connection that breaks in the head fails the call."""

    async def script(server, stream, _):
        assert await server.request(stream)
        await stream.send_all(HELLO)
        assert await server.request(stream)
        await stream.send_all(b"H")

    async with serving(script) as server, LeanTransport() as transport:
        await ask(transport, server.url)
        with pytest.raises(httpx.RemoteProtocolError):
            await ask(transport, server.url)
        assert server.connections == 1


async def test_idle_connections_are_bounded_and_expire():
    """The newest are used first; more than `max_idle` are closed, and so are old ones."""
    async with serving(answering(HELLO)) as server:
        async with LeanTransport(max_idle=2) as transport, trio.open_nursery() as nursery:
            for _ in range(5):
                nursery.start_soon(ask, transport, server.url)
        assert transport.idle == 0  # closed
        async with LeanTransport(max_idle=2) as transport:
            async with trio.open_nursery() as nursery:
                for _ in range(5):
                    nursery.start_soon(ask, transport, server.url)
            assert transport.idle == 2
        before = server.connections
        async with LeanTransport(idle_expiry=0) as transport:
            await ask(transport, server.url)
            await ask(transport, server.url)
            assert server.connections == before + 2


async def stuck(server, stream, _):
    """Script: answer the head and one chunk, then wait for the caller to leave."""
    await server.request(stream)
    await stream.send_all(OK + b"Transfer-Encoding: chunked\r\n\r\n1\r\na\r\n")
    await server.request(stream)


async def test_closing_an_unread_answer_closes_the_connection_at_once():
    """`aclose` before the end is what stops the work behind; reading on is then an error."""
    async with serving(stuck) as server, LeanTransport() as transport:
        request = httpx.Request("POST", server.url)
        response = await transport.handle_async_request(request)
        pieces = pieces_of(response)
        assert await anext(pieces) == b"a"
        began = trio.current_time()
        with trio.CancelScope() as scope:
            scope.cancel()
            await response.aclose()
        await server.gone.wait()
        assert trio.current_time() - began < 1
        assert transport.idle == 0
        with pytest.raises(httpx.ReadError):
            await anext(pieces)


@pytest.mark.parametrize("phase", ["head", "body", "sending"])
async def test_a_cancelled_request_closes_its_connection(phase):
    """Cancelled in any phase, the socket is closed before the cancellation has passed."""

    async def mute(server, stream, number):
        if phase == "body":
            await stuck(server, stream, number)
        elif phase == "head":
            await server.request(stream)
            await server.request(stream)
        else:
            await stream.receive_some(1)
            server.reading.set()
            await trio.sleep_forever()

    async def call(server):
        body = b"x" * (64_000_000 if phase == "sending" else 2)
        request = httpx.Request("POST", server.url, content=body)
        response = await transport.handle_async_request(request)
        server.reading.set()
        async for _ in pieces_of(response):
            pass

    async with serving(mute) as server, LeanTransport() as transport:
        server.reading = trio.Event()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(call, server)
            while phase == "head" and not server.requests:
                await trio.testing.wait_all_tasks_blocked(0.01)
            if phase != "head":
                await server.reading.wait()
            await trio.testing.wait_all_tasks_blocked(0.01)
            nursery.cancel_scope.cancel()
        if phase != "sending":
            await server.gone.wait()
        assert transport.idle == 0


async def test_a_refused_connection_and_a_slow_one_have_their_own_errors():
    """ConnectError and ConnectTimeout, as httpx has them."""
    url = f"http://127.0.0.1:{free_port()}"
    async with LeanTransport() as transport:
        with trio.fail_after(20):
            with pytest.raises(httpx.ConnectError):
                await ask(transport, url)
            with pytest.raises(httpx.ConnectTimeout):
                await ask(transport, url, extensions={"timeout": {"connect": 0}})
            with pytest.raises(httpx.UnsupportedProtocol):
                await ask(transport, "ftp://127.0.0.1")


async def test_a_slow_reader_slows_the_server_down():
    """Bytes are read only when asked for: a server that floods soon cannot write on."""

    async def flood(server, stream, _):
        await server.request(stream)
        await stream.send_all(OK + b"\r\n")
        while True:
            await stream.send_all(b"x" * 65536)
            server.sent += 65536

    async with serving(flood) as server, LeanTransport() as transport:
        server.sent = 0
        response = await transport.handle_async_request(httpx.Request("GET", server.url))
        await anext(pieces_of(response))
        await trio.testing.wait_all_tasks_blocked(0.1)
        assert server.sent < 16_000_000
        await response.aclose()
        await server.gone.wait()


async def test_a_head_request_has_no_body():
    """HEAD answers carry a length and no bytes."""
    script = answering(OK + b"Content-Length: 5\r\n\r\n")
    async with serving(script) as server, LeanTransport() as transport:
        response = await transport.handle_async_request(httpx.Request("HEAD", server.url))
        assert await response.aread() == b""


async def test_https_is_spoken_and_its_connections_are_kept(tls_contexts):
    """The same framing through TLS, with reuse, early close and a check of the certificate."""
    server_context, client_context = tls_contexts

    async def secure(server, stream, number):
        tls = trio.SSLStream(stream, server_context, server_side=True, https_compatible=True)
        if number == 3:
            await stuck(server, tls, number)
        elif number < 4:
            await answering(HELLO)(server, tls, number)
        else:
            with pytest.raises(trio.BrokenResourceError):
                await tls.do_handshake()

    async with serving(secure) as server:
        url = server.url.replace("http:", "https:").replace("127.0.0.1", "localhost")
        async with LeanTransport(tls=client_context) as transport:
            assert await ask(transport, url) == (200, b"hello")
            assert await ask(transport, url) == (200, b"hello")
            assert server.connections == 1
        async with LeanTransport(tls=client_context, idle_expiry=0) as transport:
            assert await ask(transport, url) == (200, b"hello")
            response = await transport.handle_async_request(httpx.Request("POST", url))
            await response.aclose()
            await server.gone.wait()
        async with LeanTransport() as transport:
            with pytest.raises(httpx.ConnectError):
                await ask(transport, url)


@pytest.fixture(scope="module")
def tls_contexts(tmp_path_factory):
    """A certificate for localhost that signs itself, and the contexts of both sides."""
    folder = tmp_path_factory.mktemp("tls")
    key, certificate = folder / "key.pem", folder / "certificate.pem"
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"),
            *("-nodes", "-days", "2", "-subj", "/CN=localhost"),
            *("-addext", "subjectAltName=DNS:localhost", "-keyout", key, "-out", certificate),
        ],
        check=True,
        capture_output=True,
    )
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(certificate, key)
    return server, ssl.create_default_context(cafile=certificate)
