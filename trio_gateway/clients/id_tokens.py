"""Proves ID tokens. joserfc comes with the extra `oidc`, and nothing else imports this module."""

from __future__ import annotations

import contextlib
import hmac
import math
import time
from typing import TYPE_CHECKING, Any, cast

import orjson
from joserfc import jwt
from joserfc.errors import JoseError
from joserfc.jwk import ECKey, RSAKey
from joserfc.jws import JWSRegistry
from joserfc.util import urlsafe_b64decode

from trio_gateway.core.openid import TokenRefused, UnknownKey

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from trio_gateway.core.openid import Expected

# Asymmetric ones alone: a token signed by a secret, or by nobody, proves nothing here.
FAMILIES = {"RS": "RSA", "PS": "RSA", "ES": "EC"}
ALGORITHMS = frozenset(family + size for family in FAMILIES for size in ("256", "384", "512"))
MOST_TOKEN = 64 * 1024  # characters
MOST_HEADER = 8 * 1024
MOST_KEYS = 100
LEAST_RSA = 2048  # bits
LEEWAY = 60  # seconds between the provider's clock and ours
MOST_INSTANT = 2**53
OLDEST = 600  # seconds since it was issued: it is fresh from the token endpoint

Key = RSAKey | ECKey


class IdTokens:
    """Checks signatures against the provider's keys, then every claim that a login rests on."""

    def keys(self, found: Iterable[Any]) -> list[Key]:
        """Read a JWKS's `keys`; those that are not for such signatures are left out."""
        keys = [_key(item) for item, _ in zip(found, range(MOST_KEYS), strict=False)]
        return [key for key in keys if key is not None]

    def verify(self, token: str, keys: Iterable[Any], expected: Expected) -> dict[str, Any]:
        """Return a token's claims. Raises UnknownKey or TokenRefused."""
        header = _header(token)
        algorithm = header.get("alg")
        if not isinstance(algorithm, str) or algorithm not in ALGORITHMS:
            raise TokenRefused("is not signed by an algorithm that is accepted here")
        key = _find(keys, header.get("kid"), algorithm)
        registry = JWSRegistry(algorithms=[algorithm], strict_check_header=False)
        registry.max_header_length = MOST_HEADER
        try:
            claims = jwt.decode(token, key, algorithms=[algorithm], registry=registry).claims
        except (JoseError, ValueError, TypeError, RecursionError):
            raise TokenRefused("is not properly signed") from None
        _check_times(claims, time.time())
        _check(claims, expected)
        return claims


def _key(item: Any) -> Key | None:
    if not isinstance(item, dict) or item.get("use", "sig") != "sig":
        return None
    with contextlib.suppress(JoseError, ValueError, TypeError, KeyError):
        if item.get("kty") == "EC":
            return ECKey.import_key(item)
        key = RSAKey.import_key(item) if item.get("kty") == "RSA" else None
        return key if key and key.public_key.key_size >= LEAST_RSA else None
    return None


def _header(token: str) -> dict[str, Any]:
    if len(token) > MOST_TOKEN:
        raise TokenRefused("is too long")
    try:
        header = orjson.loads(urlsafe_b64decode(token.partition(".")[0].encode("ascii")))
    except ValueError:
        raise TokenRefused("is no signed token") from None
    if not isinstance(header, dict):
        raise TokenRefused("is no signed token")
    return header


def _find(keys: Iterable[Key], kid: Any, algorithm: str) -> Key:
    kind = FAMILIES[algorithm[:2]]
    fitting = [key for key in keys if key.key_type == kind and key.alg in {None, algorithm}]
    if kid is not None:
        fitting = [key for key in fitting if key.kid == kid]
    if not fitting:
        raise UnknownKey
    if len(fitting) > 1:
        raise TokenRefused("does not say by which key it is signed")
    return fitting[0]


def _check_times(claims: Mapping[str, Any], now: float) -> None:
    expires, issued = _instant(claims, "exp"), _instant(claims, "iat")
    begins = _instant(claims, "nbf") if "nbf" in claims else issued
    if expires <= now - LEEWAY or issued < now - OLDEST - LEEWAY:
        raise TokenRefused("has expired")
    if max(issued, begins) > now + LEEWAY:
        raise TokenRefused("is from the future; compare the clocks")


def _instant(claims: Mapping[str, Any], name: str) -> float:
    value = claims.get(name)
    whole = isinstance(value, int) and not isinstance(value, bool) and abs(value) < MOST_INSTANT
    if not whole and not (isinstance(value, float) and math.isfinite(value)):
        raise TokenRefused(f"has no proper {name}")
    return float(cast("float", value))


def _check(claims: Mapping[str, Any], expected: Expected) -> None:
    """Check whose token it is, whom it is for, and that this login asked for it."""
    if claims.get("iss") != expected.issuer:
        raise TokenRefused("is from another issuer")
    audience = claims.get("aud")
    audiences = audience if isinstance(audience, list) else [audience]
    party = claims.get("azp")
    if expected.client_id not in audiences:
        raise TokenRefused("is for another client")
    if party != expected.client_id and (party is not None or len(audiences) > 1):
        raise TokenRefused("is for another client")
    nonce = claims.get("nonce")
    if not isinstance(nonce, str) or not hmac.compare_digest(
        nonce.encode(errors="replace"), expected.nonce.encode()
    ):
        raise TokenRefused("is not of this login")
