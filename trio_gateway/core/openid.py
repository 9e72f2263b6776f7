"""The words of a login by OpenID Connect, and which addresses of a provider may be used."""

from __future__ import annotations

from dataclasses import dataclass, field
from ipaddress import ip_address
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from trio_gateway.core.officers import Officer, Role

if TYPE_CHECKING:
    from collections.abc import Mapping

MOST_URL = 2048  # characters
MOST_SUBJECT = 255  # characters, as OpenID Connect has it
MOST_NAME = 63  # characters
# No admin's own name has a colon, so that nobody can be taken for one.
PREFIX = "oidc:"


class ProviderUnavailable(Exception):
    """Raised where the provider gives no usable answer; the text goes on from "The provider"."""


class ProviderBusy(ProviderUnavailable):
    """Raised where too much is being asked of the provider already."""


class TokenRefused(Exception):
    """Raised for an ID token that proves nothing; the text goes on from "The ID token"."""


class AttemptRefused(Exception):
    """Raised for a login that did not begin in this browser, took too long, or was used."""


class CodeRefused(Exception):
    """Raised where the provider does not honor the code of a login."""


class UnknownKey(Exception):
    """Raised where no key that is known fits a token's header."""


@dataclass(frozen=True, slots=True)
class Client:
    """Who we are to the provider. `claim` is the one that roles are read from."""

    issuer: str
    client_id: str
    client_secret: str = field(repr=False)
    redirect_uri: str
    claim: str


@dataclass(frozen=True, slots=True)
class Pending:
    """The secrets of one login under way."""

    state: str = field(repr=False)
    nonce: str = field(repr=False)
    verifier: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class Expected:
    """What an ID token has to say."""

    issuer: str
    client_id: str
    nonce: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class Roles:
    """Which values of a claim make whom."""

    claim: str
    admins: frozenset[str]
    viewers: frozenset[str]

    def of(self, claims: Mapping[str, Any]) -> Role | None:
        """Return the role that these claims give; an address that is not proven gives none."""
        value = claims.get(self.claim)
        if self.claim == "email" and claims.get("email_verified") not in (True, "true"):
            return None
        held = {item for item in _listed(value) if isinstance(item, str)}
        if held & self.admins:
            return Role.ADMIN
        return Role.VIEWER if held & self.viewers else None


def credential_of(claims: Mapping[str, Any]) -> str:
    """Return what a session of this person rests on. Raises TokenRefused."""
    subject = claims.get("sub")
    if not isinstance(subject, str) or not 0 < len(subject) <= MOST_SUBJECT:
        raise TokenRefused("has no proper sub")
    if not subject.isprintable() or not subject.strip():
        raise TokenRefused("has no proper sub")
    return PREFIX + subject


def officer_of(claims: Mapping[str, Any], role: Role) -> Officer:
    """Return who this is, by the first name that is given. Raises TokenRefused."""
    credential = credential_of(claims)
    named = (claims.get(name) for name in ("preferred_username", "email", "sub"))
    name = next(value for value in named if isinstance(value, str) and value.strip())
    shown = "".join(ch if ch.isprintable() else "?" for ch in name.strip()[:MOST_NAME])
    return Officer(PREFIX + shown, role, credential)


def listed(setting: str) -> frozenset[str]:
    """Read values with commas between."""
    return frozenset(filter(None, map(str.strip, setting.split(","))))


def trustworthy(url: str) -> bool:
    """Whether a URL is plain, and https, or http to this machine."""
    try:
        parts = urlsplit(url)
        host = parts.hostname or ""
        plain = parts.port != 0 and parts.username is None and not parts.fragment
    except ValueError:
        return False
    printable = url.isascii() and url.isprintable() and " " not in url and len(url) <= MOST_URL
    if not (host and plain and printable):
        return False
    return parts.scheme == "https" or (parts.scheme == "http" and is_loopback(host))


def is_loopback(host: str) -> bool:
    """Whether a host is this machine."""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]
