"""Connections of the admin listener: what they may ask, and when they end."""

import pytest
import trio

from tests.integration.admin_world import open_admin
from tests.integration.caller import PATIENCE
from tests.world import open_world

TWO_LENGTHS = "POST /login HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\n"
TWO_LENGTHS += "Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n"
UPGRADE = "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
UPGRADE += "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"


@pytest.fixture
async def site(database, redis_url):
    async with open_world(database, redis_url) as world, open_admin(world) as admin:
        yield admin


async def said(site, text, *, to_the_end=True):
    """Send bytes on a connection of their own; return what comes, to its end or the first of it."""
    stream = await trio.open_tcp_stream("127.0.0.1", site.port)
    async with stream:
        await stream.send_all(text.encode())
        received = b""
        with trio.fail_after(PATIENCE):
            while piece := await stream.receive_some():
                received += piece
                if not to_the_end:
                    break
    return received


@pytest.mark.parametrize("version", ["1.0", "1.1"])
async def test_a_connection_ends_where_it_was_said_to(site, version):
    """`Connection: close`, and HTTP/1.0, close it right after the answer."""
    close = "Connection: close\r\n" if version == "1.1" else ""
    answer = await said(site, f"GET /healthz HTTP/{version}\r\nHost: localhost\r\n{close}\r\n")
    assert answer.startswith(b"HTTP/1.1 200")
    assert answer.endswith(b"ok")


async def test_an_export_ends_for_a_client_that_knows_no_chunks(site):
    """The end of the connection is all that such a client can go by."""
    token = await site.token("viewer")
    await site.world.post("/api/chat", {"model": "llama3.2", "messages": [{"role": "user"}]})
    await site.world.settled()
    answer = await said(
        site,
        "GET /admin/v1/ledger?format=csv HTTP/1.0\r\nHost: localhost\r\n"
        f"Authorization: Bearer {token}\r\n\r\n",
    )
    assert b"/api/chat" in answer
    assert answer.endswith(b"\r\n")


async def test_two_requests_on_one_connection_are_both_answered(site):
    """The end of the first answer is no hang-up."""
    ask = "GET /healthz HTTP/1.1\r\nHost: localhost\r\n"
    answers = await said(site, f"{ask}\r\n{ask}Connection: close\r\n\r\n")
    assert answers.count(b"HTTP/1.1 200") == 2


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        ("GET http://evil.example/login HTTP/1.1\r\nHost: localhost\r\n\r\n", 400),
        ("GET ?/admin/v1/tenants HTTP/1.1\r\nHost: localhost\r\n\r\n", 400),
        (TWO_LENGTHS, 400),
        (f"GET /events HTTP/1.1\r\nHost: localhost\r\n{UPGRADE}\r\n", 404),
        (f"GET / HTTP/1.1\r\nHost: evil.example\r\n{UPGRADE}\r\n", 404),
    ],
    ids=["absolute", "no slash", "two lengths", "websocket", "websocket elsewhere"],
)
async def test_what_could_be_read_in_two_ways_is_refused(site, request_, status):
    """Once, before anything of it is looked at, and without a word in the log."""
    answer = await said(site, request_, to_the_end=status == 400)
    assert answer.startswith(f"HTTP/1.1 {status} ".encode())
    assert answer.count(b"HTTP/1.1") == 1


async def test_an_id_that_no_text_may_hold_is_not_found(site):
    """A NUL in a path is an unknown batch, also to a change of it."""
    for method, path in (("GET", "/batches/%00"), ("POST", "/batches/%00/cancel")):
        assert (await site.ask(method, path)).status_code == 404
