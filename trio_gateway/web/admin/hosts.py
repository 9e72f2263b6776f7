"""Which Host a request may name: a page elsewhere must not reach us under a name of its own."""

from __future__ import annotations

import ipaddress
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from collections.abc import Collection

LOCAL = ("localhost", "127.0.0.1", "::1")


def allowed_hosts(public_url: str) -> frozenset[str]:
    """Return the names that are always ours: loopback's, and that of the public URL."""
    return frozenset(LOCAL) | {urlsplit(public_url).hostname or "localhost"}


def is_ours(host: str, server: str | None, allowed: Collection[str]) -> bool:
    """Whether a Host header may be answered; `server` is the address that was connected to.

    An address is no name that somebody could point elsewhere, so the very one that was connected
    to is accepted as well.
    """
    try:
        parts = urlsplit(f"//{host}")
        name, _ = parts.hostname, parts.port
    except ValueError:
        return False
    if name is None or parts.path or parts.query or parts.fragment or parts.username is not None:
        return False
    if name in allowed:
        return True
    try:
        return ipaddress.ip_address(name) == ipaddress.ip_address(server or "")
    except ValueError:
        return False
