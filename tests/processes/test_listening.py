"""Opening the public and the admin sockets."""

from __future__ import annotations

import socket

import pytest

from trio_gateway.listening import BindFailed, PortInUse, close, is_loopback, listen, url


@pytest.mark.parametrize(
    ("bind", "start"),
    [("127.0.0.1:0", "http://127.0.0.1:"), ("[::1]:0", "http://[::1]:"), (":0", "http://")],
)
def test_the_url_leads_to_the_socket(bind, start):
    """Port 0 becomes a real one, a wildcard a loopback address."""
    sockets = listen(bind)
    found = url(sockets)
    assert found.startswith(start)
    port = int(found.rsplit(":", 1)[1])
    assert {one.getsockname()[1] for one in sockets} == {port}
    host = found.removeprefix("http://").rsplit(":", 1)[0].strip("[]")
    socket.create_connection((host, port), timeout=5).close()
    close(sockets)


def test_a_port_in_use_is_named_and_nothing_stays_open():
    """The sentence names the address; afterwards the port is free for its owner."""
    first = listen("127.0.0.1:0")
    bind = f"127.0.0.1:{first[0].getsockname()[1]}"
    with pytest.raises(PortInUse, match=f"cannot listen on {bind}"):
        listen(bind)
    close(first)
    close(listen(bind))


@pytest.mark.parametrize(
    "bind", ["", "8080", "localhost", "127.0.0.1:port", "127.0.0.1:99999", "http://x:1", "a:1/b"]
)
def test_what_is_no_address_is_refused_in_one_sentence(bind):
    """HOST:PORT and nothing else."""
    with pytest.raises(BindFailed, match="write HOST:PORT"):
        listen(bind)


def test_an_address_of_another_machine_is_refused():
    """Only addresses that are here can be listened on."""
    with pytest.raises(BindFailed, match=r"cannot listen on 192\.0\.2\.1:0"):
        listen("192.0.2.1:0")


@pytest.mark.parametrize(
    ("bind", "expected"),
    [
        ("127.0.0.1:1", True),
        ("[::1]:1", True),
        ("localhost:1", True),
        ("127.9.9.9:1", True),
        ("0.0.0.0:1", False),
        (":1", False),
        ("[::]:1", False),
        ("example.org:1", False),
    ],
)
def test_loopback_is_told_from_the_rest(bind, expected):
    """A name other than `localhost` counts as remote."""
    assert is_loopback(bind) is expected
