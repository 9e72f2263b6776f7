"""A real OpenID provider on loopback, whose every answer a test can bend."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import secrets
import socket
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from functools import partial
from html import escape
from typing import Any
from urllib.parse import parse_qs, unquote_plus, urlencode

import orjson
import trio
from hypercorn.config import Config
from hypercorn.trio import serve
from joserfc import jwt
from joserfc.jwk import ECKey, RSAKey
from quart import Response, request
from quart_trio import QuartTrio

CLIENT_ID = "trio-gateway"
CLIENT_SECRET = "s3cret with:odd/signs+%"
RSA, EC = RSAKey.generate_key(2048), ECKey.generate_key("P-256")
OTHER_RSA = RSAKey.generate_key(2048)


@dataclass
class Provider:
    """What it answers, and what it was asked."""

    issuer: str = ""
    person: dict[str, Any] = field(default_factory=dict)  # claims of who logs in next
    keys: dict[str, Any] = field(default_factory=lambda: {"one": RSA})  # listed, by kid
    kid: str = "one"  # the one it signs by
    algorithm: str = "RS256"
    asks: bool = False  # whether it shows a page of its own before it leads back
    basic: bool = True
    document: dict[str, Any] = field(default_factory=dict)  # laid over the discovery document
    answers: dict[str, Response] = field(default_factory=dict)  # instead, by path
    make_token: Callable[[dict[str, Any]], str] | None = None
    hold: trio.Event | None = None  # the token endpoint waits for it
    codes: dict[str, dict[str, str]] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)

    def claims(self, nonce: str) -> dict[str, Any]:
        """Return the claims of a good token, with the person's laid over it."""
        now = int(time.time())
        standard = {"iss": self.issuer, "aud": CLIENT_ID, "sub": "person-1", "nonce": nonce}
        return {**standard, "iat": now, "exp": now + 300, **self.person}

    def sign(self, claims: dict[str, Any], key: Any = None, **header: Any) -> str:
        """Return a signed token."""
        head = {"alg": self.algorithm, "kid": self.kid, **header}
        return jwt.encode(head, claims, key or self.keys[self.kid], algorithms=[head["alg"]])

    def count(self, path: str) -> int:
        """Return how often a path was asked for."""
        return self.asked.count(path)


def create_app(provider: Provider) -> QuartTrio:
    """Build the provider's application."""
    app = QuartTrio(__name__)

    @app.before_request
    async def bend() -> Response | None:
        provider.asked.append(request.path)
        return provider.answers.get(request.path)

    @app.get("/.well-known/openid-configuration")
    async def discovery() -> dict[str, Any]:
        method = "client_secret_basic" if provider.basic else "client_secret_post"
        return {
            "issuer": provider.issuer,
            "authorization_endpoint": f"{provider.issuer}/authorize",
            "token_endpoint": f"{provider.issuer}/token",
            "jwks_uri": f"{provider.issuer}/keys",
            "token_endpoint_auth_methods_supported": [method],
            **provider.document,
        }

    @app.get("/keys")
    async def keys() -> dict[str, Any]:
        listed = [
            {**key.as_dict(private=False), "kid": kid, "use": "sig"}
            for kid, key in provider.keys.items()
        ]
        return {"keys": [*listed, {"kty": "oct", "k": "AAAA", "kid": "secret"}, "no key"]}

    @app.get("/authorize")
    async def authorize() -> Response:
        code = secrets.token_urlsafe(16)
        provider.codes[code] = dict(request.args)
        query = urlencode({"code": code, "state": request.args["state"]})
        back = f"{request.args['redirect_uri']}?{query}"
        if provider.asks:
            return Response(f'<a href="{escape(back)}">Go on</a>', content_type="text/html")
        return Response("", 302, {"location": back})

    @app.post("/token")
    async def token() -> Response | dict[str, Any]:
        if provider.hold is not None:
            await provider.hold.wait()
        form = {name: values[0] for name, values in parse_qs((await request.data).decode()).items()}
        if _client(provider, form) != (CLIENT_ID, CLIENT_SECRET):
            return Response('{"error": "invalid_client"}', 401)
        begun = provider.codes.pop(form["code"], None)
        if begun is None or not _proven(begun, form):
            return Response('{"error": "invalid_grant", "error_description": "<b>no</b>"}', 400)
        claims = provider.claims(begun["nonce"])
        made = (provider.make_token or provider.sign)(claims)
        return {"access_token": "unused", "token_type": "Bearer", "id_token": made}

    return app


def _client(provider: Provider, form: dict[str, str]) -> tuple[str | None, str | None]:
    if not provider.basic:
        return form.get("client_id"), form.get("client_secret")
    given = request.headers.get("authorization", "").removeprefix("Basic ")
    name, _, secret = base64.b64decode(given).decode().partition(":")
    return unquote_plus(name), unquote_plus(secret)


def _proven(begun: dict[str, str], form: dict[str, str]) -> bool:
    digest = hashlib.sha256(form["code_verifier"].encode()).digest()
    challenge = base64.urlsafe_b64encode(digest).rstrip(b"=").decode()
    return (
        begun["code_challenge_method"] == "S256"
        and begun["code_challenge"] == challenge
        and begun["redirect_uri"] == form["redirect_uri"]
        and form["grant_type"] == "authorization_code"
    )


def bound() -> socket.socket:
    """Return a listening socket on a free port."""
    found = socket.socket()
    found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    found.bind(("127.0.0.1", 0))
    return found


@contextlib.asynccontextmanager
async def serving(app: Any, listener: socket.socket) -> AsyncIterator[None]:
    """Serve an application on a socket, which is closed at the end."""
    config = Config()
    config.bind = [f"fd://{listener.detach()}"]
    config.accesslog = None
    config.errorlog = None
    config.graceful_timeout = 1
    config.include_server_header = False
    stop = trio.Event()
    async with trio.open_nursery() as nursery:
        await nursery.start(partial(serve, app, config, shutdown_trigger=stop.wait, mode="asgi"))
        try:
            yield
        finally:
            stop.set()


@contextlib.asynccontextmanager
async def open_provider(**values: Any) -> AsyncIterator[Provider]:
    """Run a provider of its own; `values` are its fields."""
    listener = bound()
    # Another site than 127.0.0.1, on which the dashboard is.
    provider = Provider(issuer=f"http://localhost:{listener.getsockname()[1]}", **values)
    async with serving(create_app(provider), listener):
        yield provider


def unsigned(claims: dict[str, Any], algorithm: Any = "none") -> str:
    """Return a token of the algorithm `none`, or of one that is as bad."""
    return f"{packed({'alg': algorithm, 'kid': 'one'})}.{packed(claims)}."


def packed(value: Any) -> str:
    """Return base64url of JSON."""
    return base64.urlsafe_b64encode(orjson.dumps(value)).rstrip(b"=").decode()
