"""Where a webhook may lead: an address in plain spelling, whose host the operator has listed."""

from __future__ import annotations

import ipaddress
import re
from typing import TYPE_CHECKING

from trio_gateway.services.account_rows import Refused

if TYPE_CHECKING:
    from collections.abc import Iterable

MOST_CHARACTERS = 2000
HOSTS = "TRIO_GATEWAY_WEBHOOK_HOSTS"
_PORTS = {"https": 443, "http": 80}
# No user info and no fragment fit in here, nor anything that two parsers could read differently.
_URL = re.compile(
    r"(https?)://([A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\])(?::([0-9]{1,5}))?"
    r"(?:[/?](?:[A-Za-z0-9._~!$&'()*+,;=:@/?-]|%[0-9A-Fa-f]{2})*)?"
)
_ENTRY = re.compile(r"([A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\])(?::([0-9]{1,5}))?")


def parse_hosts(listed: str) -> frozenset[str]:
    """Read the allowlist: `host` or `host:port`, with commas between."""
    return frozenset(part.strip().lower() for part in listed.split(",") if part.strip())


def check_url(url: str, hosts: Iterable[str]) -> None:
    """Raise Refused, which names `url`, for an address that may not be sent to.

    It must be https, or http on loopback, and its `host[:port]` be in `hosts` exactly: an entry
    without a port means the scheme's own.
    """
    found = _URL.fullmatch(url) if len(url) <= MOST_CHARACTERS else None
    if found is None:
        raise Refused(
            "must be https://host[:port][/path], without a user and without a fragment, of at most"
            f" {MOST_CHARACTERS} characters",
            "url",
        )
    scheme, host = found[1], found[2].lower()
    port = int(found[3] or _PORTS[scheme])
    if not 0 < port < 65_536:
        raise Refused("must have a port from 1 to 65535", "url")
    if scheme == "http" and not _on_loopback(host):
        raise Refused("must be https: http is for loopback alone", "url")
    if (host, port) not in {_entry(entry, _PORTS[scheme]) for entry in hosts}:
        raise Refused(f"must have a host that {HOSTS} lists", "url")


def _entry(text: str, default: int) -> tuple[str, int] | None:
    found = _ENTRY.fullmatch(text)
    return (found[1].lower(), int(found[2] or default)) if found else None


def _on_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False
