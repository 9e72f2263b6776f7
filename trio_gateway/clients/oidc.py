"""The door to an OpenID provider: its discovery document, its keys, and the code flow.

What is fetched is kept for a while. What the provider says in words is never passed on: each
failure has a sentence of ours.
"""

from __future__ import annotations

import base64
import hashlib
from collections import deque
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol
from urllib.parse import quote, quote_plus, urlencode, urlsplit

import trio

from trio_gateway.clients.oidc_fetch import Fetcher
from trio_gateway.core.openid import (
    CodeRefused,
    Expected,
    ProviderBusy,
    ProviderUnavailable,
    TokenRefused,
    UnknownKey,
    trustworthy,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from trio_gateway.core.openid import Client, Pending

KEPT = 3600.0  # seconds that the document and the keys are kept
AT_ONCE = 8  # logins that may be asking the provider
FETCHES = 6  # times that the document or the keys may be fetched in a span
FETCH_SPAN = 60.0  # seconds
DISCOVERY = "/.well-known/openid-configuration"
SCOPES = ("openid", "profile", "email")
BASIC, POST = "client_secret_basic", "client_secret_post"


class TokenCheck(Protocol):
    """Whoever can read keys and prove tokens by them."""

    def keys(self, found: Iterable[Any]) -> list[Any]:
        """Read a JWKS's `keys`."""

    def verify(self, token: str, keys: Iterable[Any], expected: Expected) -> dict[str, Any]:
        """Return the claims; raises UnknownKey or TokenRefused."""


@dataclass(frozen=True, slots=True)
class Document:
    """What the discovery document says that matters here."""

    authorization: str
    token: str
    keys: str
    basic: bool  # whether the secret goes into the Authorization header
    names_itself: bool  # whether `iss` comes with every answer (RFC 9207)
    scopes: tuple[str, ...]


class Provider:
    """Errors raised: ProviderUnavailable, and by `claims` CodeRefused and TokenRefused too."""

    def __init__(self, client: Client, check: TokenCheck, fetcher: Fetcher | None = None) -> None:
        """Nothing is asked yet: a provider that is away keeps nobody from starting."""
        self.client = client
        self._check = check
        self._fetcher = fetcher or Fetcher()
        self._berths = trio.CapacityLimiter(AT_ONCE)
        self._fetching = trio.Lock()
        self._fetched: deque[float] = deque(maxlen=FETCHES)
        self._document: tuple[float, Document] | None = None
        self._keys: tuple[float, list[Any]] | None = None

    async def aclose(self) -> None:
        """Close the connections."""
        await self._fetcher.aclose()

    async def login_url(self, pending: Pending) -> str:
        """Return where the browser is to go."""
        with self._berth():
            document = await self._discover()
        digest = hashlib.sha256(pending.verifier.encode()).digest()
        query = {
            "response_type": "code",
            "client_id": self.client.client_id,
            "redirect_uri": self.client.redirect_uri,
            "scope": " ".join(document.scopes),
            "state": pending.state,
            "nonce": pending.nonce,
            "code_challenge": base64.urlsafe_b64encode(digest).rstrip(b"=").decode(),
            "code_challenge_method": "S256",
        }
        mark = "&" if urlsplit(document.authorization).query else "?"
        return f"{document.authorization}{mark}{urlencode(query, quote_via=quote)}"

    async def claims(self, code: str, pending: Pending, issuer: str | None) -> dict[str, Any]:
        """Change a code for the ID token's claims; `issuer` is the answer's own `iss`."""
        with self._berth():
            document = await self._discover()
            if issuer != self.client.issuer and (issuer is not None or document.names_itself):
                raise CodeRefused
            token = await self._exchange(document, code, pending.verifier)
            expected = Expected(self.client.issuer, self.client.client_id, pending.nonce)
            keys = await self._known_keys(document)
            try:
                return self._check.verify(token, keys, expected)
            except UnknownKey:
                keys = await self._known_keys(document, unlike=keys)
            try:
                return self._check.verify(token, keys, expected)
            except UnknownKey:
                raise TokenRefused("is signed by a key that the provider does not list") from None

    @contextmanager
    def _berth(self) -> Iterator[None]:
        borrower = object()
        try:
            self._berths.acquire_on_behalf_of_nowait(borrower)
        except trio.WouldBlock:
            raise ProviderBusy("is asked too much at once; try again in a moment") from None
        try:
            yield
        finally:
            self._berths.release_on_behalf_of(borrower)

    async def _discover(self) -> Document:
        async with self._fetching:
            if self._document is None or _old(self._document[0]):
                self._count()
                found = await self._fetcher.get(self.client.issuer.rstrip("/") + DISCOVERY)
                self._document = trio.current_time(), self._read(found)
            return self._document[1]

    async def _known_keys(self, document: Document, unlike: list[Any] | None = None) -> list[Any]:
        """Return the keys; `unlike` are those in which one was missing."""
        async with self._fetching:
            if self._keys is None or _old(self._keys[0]) or self._keys[1] is unlike:
                self._count()
                found = (await self._fetcher.get(document.keys)).get("keys")
                if not isinstance(found, list):
                    raise ProviderUnavailable("serves a list of keys that cannot be read")
                self._keys = trio.current_time(), self._check.keys(found)
            return self._keys[1]

    def _count(self) -> None:
        now = trio.current_time()
        if len(self._fetched) == FETCHES and self._fetched[0] > now - FETCH_SPAN:
            raise ProviderBusy("was asked for its settings too often; try again in a minute")
        self._fetched.append(now)

    def _read(self, found: Mapping[str, Any]) -> Document:
        if found.get("issuer") != self.client.issuer:
            raise ProviderUnavailable(
                "names an issuer that is not, to the letter, TRIO_GATEWAY_OIDC_ISSUER"
            )
        offered = _strings(found.get("token_endpoint_auth_methods_supported", [BASIC]))
        if not offered & {BASIC, POST}:
            raise ProviderUnavailable("takes a client secret in no way that is spoken here")
        further = {self.client.claim} & _strings(found.get("scopes_supported"))
        return Document(
            authorization=_endpoint(found, "authorization_endpoint"),
            token=_endpoint(found, "token_endpoint"),
            keys=_endpoint(found, "jwks_uri"),
            basic=BASIC in offered,
            names_itself=found.get("authorization_response_iss_parameter_supported") is True,
            scopes=(*SCOPES, *(further - {*SCOPES})),
        )

    async def _exchange(self, document: Document, code: str, verifier: str) -> str:
        form = {
            "grant_type": "authorization_code",
            "code": code,
            "redirect_uri": self.client.redirect_uri,
            "code_verifier": verifier,
        }
        headers = {}
        client_id, secret = self.client.client_id, self.client.client_secret
        if document.basic:
            pair = f"{quote_plus(client_id)}:{quote_plus(secret)}".encode()
            headers["authorization"] = "Basic " + base64.b64encode(pair).decode()
        else:
            form |= {"client_id": client_id, "client_secret": secret}
        answer = await self._fetcher.post(document.token, headers, urlencode(form).encode())
        token = answer.get("id_token")
        if not isinstance(token, str):
            raise ProviderUnavailable("gave no ID token")
        return token


def _endpoint(found: Mapping[str, Any], name: str) -> str:
    value = found.get(name)
    if not isinstance(value, str) or not trustworthy(value):
        raise ProviderUnavailable(f"names no {name} that begins with https://")
    return value


def _strings(value: Any) -> set[str]:
    return {item for item in value if isinstance(item, str)} if isinstance(value, list) else set()


def _old(at: float) -> bool:
    return trio.current_time() - at >= KEPT
