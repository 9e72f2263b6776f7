"""Listening sockets: opened once by the supervisor, inherited by every worker."""

from __future__ import annotations

import contextlib
import errno
import ipaddress
import os
import select
import socket
import sys
from ctypes import addressof, create_string_buffer
from struct import pack
from urllib.parse import urlsplit

BACKLOG = 2048
_SO_ATTACH_FILTER = 26  # asm-generic/socket.h
# A filter of linux/filter.h over TCP headers: drop what has SYN of (SYN, ACK), pass the rest.
_NO_SYN = (
    (0x30, 0, 0, 13),  # load the byte of the flags
    (0x54, 0, 0, 0x12),  # and SYN | ACK
    (0x15, 0, 1, 0x02),  # equal to SYN?
    (0x06, 0, 0, 0),  # drop it
    (0x06, 0, 0, 0xFFFFFFFF),  # pass all of it
)


class BindFailed(Exception):
    """Raised when an address cannot be listened on; the text is one clear sentence."""


class PortInUse(BindFailed):
    """Raised when another program listens there."""


def parse_bind(bind: str) -> tuple[str, int]:
    """Split `HOST:PORT`, `[IPV6]:PORT` or `:PORT`, which is every address; raises BindFailed."""
    try:
        parts = urlsplit(f"//{bind}")
        port = parts.port
    except ValueError:
        port = None
    if port is None or parts.path or parts.query or parts.username is not None:
        raise BindFailed(f"`{bind}` is not an address to listen on: write HOST:PORT")
    return parts.hostname or "", port


def is_loopback(bind: str) -> bool:
    """Whether only this machine can connect there; raises BindFailed."""
    host, _ = parse_bind(bind)
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def listen(bind: str) -> list[socket.socket]:
    """Listen on every address that `bind` names, on one port (0: a free one).

    Raises PortInUse or BindFailed, and then nothing is left open.
    """
    host, port = parse_bind(bind)
    flags = socket.AI_PASSIVE
    try:
        found = socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=flags)
    except OSError as error:
        raise BindFailed(f"cannot listen on {bind}: the name is not known here") from error
    opened: list[socket.socket] = []
    try:
        for family, _, _, _, address in dict.fromkeys(found):
            # all of them share the port that the first one got
            chosen = port or (opened[0].getsockname()[1] if opened else 0)
            _open(opened, family, (address[0], chosen, *address[2:]))
        if not opened:
            raise OSError(errno.EADDRNOTAVAIL, "no such address here")  # noqa: TRY301
    except OSError as error:
        close(opened)
        if error.errno == errno.EADDRINUSE:
            raise PortInUse(
                f"cannot listen on {bind}: another program already does; "
                "stop it, or choose another address"
            ) from error
        raise BindFailed(f"cannot listen on {bind}: {os.strerror(error.errno or 0)}") from error
    return opened


def _open(opened: list[socket.socket], family: int, address: tuple[object, ...]) -> None:
    try:
        new = socket.socket(family, socket.SOCK_STREAM)
    except OSError as error:
        if error.errno == errno.EAFNOSUPPORT:
            return
        raise
    try:
        new.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            new.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        new.bind(address)
        new.listen(BACKLOG)
    except OSError as error:
        new.close()
        # a name such as `localhost` may have an IPv6 address that the machine has not
        if error.errno != errno.EADDRNOTAVAIL:
            raise
    else:
        opened.append(new)


def turn_away(sockets: list[socket.socket]) -> None:
    """Make no connection on them from now on; those that wait can still be accepted.

    The kernel makes connections ahead of their acceptance, and the last close of a listening
    socket resets them, with the calls that were sent on them. Linux can drop what would make
    another: whoever sent it tries again, and finds the socket closed. Elsewhere nothing happens.
    """
    if sys.platform != "linux":
        return
    instructions = create_string_buffer(b"".join(pack("HBBI", *each) for each in _NO_SYN))
    program = pack("HP", len(_NO_SYN), addressof(instructions))
    with contextlib.suppress(OSError):  # a sandbox may not have it
        for one in sockets:
            one.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, program)


def crowded(sockets: list[socket.socket]) -> bool:
    """Whether a connection on one of them waits to be accepted."""
    poll = select.poll()
    for one in sockets:
        poll.register(one, select.POLLIN)
    return bool(poll.poll(0))


def close(sockets: list[socket.socket]) -> None:
    """Close them all; where no worker holds them either, connections are now refused."""
    for one in sockets:
        one.close()


def url(sockets: list[socket.socket]) -> str:
    """Return an `http://` address by which this machine reaches the sockets."""
    host, port = sockets[0].getsockname()[:2]
    local = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"http://[{local}]:{port}" if ":" in local else f"http://{local}:{port}"
