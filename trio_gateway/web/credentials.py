"""Where a key may stand in a request, and who the client says it is."""

from __future__ import annotations

from ipaddress import ip_address, ip_network
from typing import TYPE_CHECKING, Any

from trio_gateway.core.errors import Unauthenticated

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from ipaddress import IPv4Network, IPv6Network


def presented_key(headers: Iterable[tuple[bytes, bytes]]) -> str | None:
    """Return the key's text, None where there is none; two that disagree are none.

    Duplicate fields were refused before. Raises Unauthenticated.
    """
    bearer: bytes | None = None
    plain: bytes | None = None
    for name, value in headers:
        if name == b"authorization":
            scheme, _, rest = value.strip().partition(b" ")
            if scheme.lower() != b"bearer":
                raise Unauthenticated
            bearer = rest.strip()
        elif name == b"x-api-key":
            plain = value.strip()
    if bearer is not None and plain is not None and bearer != plain:
        raise Unauthenticated
    found = plain if bearer is None else bearer
    return None if found is None else found.decode("latin-1")


def trusted_networks(setting: str) -> tuple[IPv4Network | IPv6Network, ...]:
    """Read TRUSTED_PROXIES: addresses or networks, with commas between. Raises ValueError."""
    return tuple(
        ip_network(part.strip(), strict=False) for part in setting.split(",") if part.strip()
    )


def client_address(
    scope: dict[str, Any], trusted: Sequence[IPv4Network | IPv6Network]
) -> str | None:
    """Return the client's address; forwarded ones count only as far as proxies are trusted.

    X-Forwarded-For is walked from the right, past trusted proxies, to the first other one.
    """
    peer: str | None = (scope.get("client") or [None])[0]
    if not trusted or not _is_trusted(peer, trusted):
        return peer
    forwarded = b",".join(
        value for name, value in scope["headers"] if name == b"x-forwarded-for"
    ).decode("latin-1")
    for hop in reversed([part.strip() for part in forwarded.split(",") if part.strip()]):
        if not _is_address(hop):
            return peer
        peer = hop
        if not _is_trusted(hop, trusted):
            return hop
    return peer


def _is_address(text: str) -> bool:
    try:
        ip_address(text)
    except ValueError:
        return False
    return True


def _is_trusted(text: str | None, trusted: Iterable[IPv4Network | IPv6Network]) -> bool:
    return (
        text is not None and _is_address(text) and any(ip_address(text) in net for net in trusted)
    )
