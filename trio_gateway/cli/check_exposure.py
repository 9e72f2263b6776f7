"""Whether others than the gateway reach an Ollama, as far as that is seen from this machine.

Only this machine's own addresses are probed, beside the backends that the settings name.
"""

from __future__ import annotations

import ipaddress
import re
import socket
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import trio

from trio_gateway.cli.check_http import get
from trio_gateway.cli.check_ollama import PATH, place_of, version_in
from trio_gateway.cli.finding import Finding, fail, ok, warn

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    Address = ipaddress.IPv4Address | ipaddress.IPv6Address

NETWORK = Path("/proc/net")
PORTS = {"http": 80, "https": 443}
_LOCAL4 = re.compile(r"\|-- (\S+)\n\s+/32 host LOCAL")
CLOSE = (
    "Let it listen on loopback alone (OLLAMA_HOST=127.0.0.1), or close its port with a firewall;"
    " OLLAMA_ORIGINS should name no foreign page either."
)
ELSEWHERE = (
    "It wants no key: let a firewall or a network policy admit the gateway alone, set OLLAMA_HOST"
    " to a private address, and let OLLAMA_ORIGINS name no foreign page."
)


def own_addresses(told: Path = NETWORK) -> list[Address]:
    """Return this machine's addresses that others may use; none where Linux does not tell."""
    found: set[Address] = set()
    with suppress(OSError):
        text = (told / "fib_trie").read_text(encoding="ascii")
        found |= {ipaddress.ip_address(each) for each in _LOCAL4.findall(text)}
    with suppress(OSError):
        for line in (told / "if_inet6").read_text(encoding="ascii").splitlines():
            found.add(ipaddress.IPv6Address(bytes.fromhex(line.split()[0])))
    # a link-local address means nothing without its interface
    usable = (each for each in found if not (each.is_loopback or each.is_link_local))
    return sorted(usable, key=lambda each: (each.version, int(each)))


async def check_exposure(url: str, own: Sequence[Address]) -> list[Finding]:
    """Say who else may reach the Ollama at `url`."""
    check = f"exposure {place_of(url)}"
    parts = urlsplit(url)
    addresses = await _resolve(parts.hostname or "")
    if not addresses:
        advice = "Correct OLLAMA_BASE_URL, or the name service of this machine."
        return [warn(check, "its name has no address here", advice)]
    if not all(address.is_loopback for address in addresses):
        return [_elsewhere(check, addresses)]
    port = parts.port or PORTS[parts.scheme]
    reached = await answering(f"{parts.scheme}://{_bracketed(a)}:{port}" for a in own)
    if not reached:
        return [ok(check, "not reached at this machine's other addresses")]
    shown = ", ".join(reached)
    if any(_host_of(each).is_global for each in reached):
        return [fail(check, f"answers without a key on a public address: {shown}", CLOSE)]
    return [warn(check, f"answers without a key on other addresses too: {shown}", CLOSE)]


async def answering(bases: Iterable[str]) -> list[str]:
    """Return those of `bases` at which an Ollama answers without a key, all asked at once."""
    asked = list(bases)
    reached: set[str] = set()

    async def ask(base: str) -> None:
        if version_in(await get(base + PATH)) is not None:
            reached.add(base)

    async with trio.open_nursery() as nursery:
        for base in asked:
            nursery.start_soon(ask, base)
    return [base for base in asked if base in reached]


def _elsewhere(check: str, addresses: Sequence[Address]) -> Finding:
    public = [str(address) for address in addresses if address.is_global]
    if public:
        detail = f"has a public address ({', '.join(public)})"
        return warn(check, detail, ELSEWHERE)
    return ok(check, "is reached over a network", ELSEWHERE)


async def _resolve(host: str) -> list[Address]:
    try:
        found = await trio.socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        return []
    return [ipaddress.ip_address(str(each[4][0]).partition("%")[0]) for each in found]


def _bracketed(address: Address) -> str:
    return f"[{address}]" if address.version == 6 else str(address)


def _host_of(base: str) -> Address:
    return ipaddress.ip_address(urlsplit(base).hostname or "")
