"""Logins that are under way at an OpenID provider, each bound to one browser and good for once.

The browser holds a random secret, signed, with its end; what travels through the provider is
derived from it by a key of ours. So nothing is kept for logins that nobody finishes: Redis is
told of finished ones alone, and forgets them when their time is over.
"""

from __future__ import annotations

import base64
import hmac
import secrets
import time
from typing import TYPE_CHECKING

from trio_gateway.core.openid import AttemptRefused, Pending

if TYPE_CHECKING:
    from trio_gateway.clients.redis import Redis

LIFE = 600  # seconds
MOST_COOKIE = 200  # characters
USED = "tg:login:"  # + the attempt's id: it was used


class Attempts:
    """Errors raised: by `take`, AttemptRefused and StoreUnavailable."""

    def __init__(self, redis: Redis, installation_secret: bytes) -> None:
        """Every machine of an installation can finish what another one began."""
        self._redis = redis
        self._key = hmac.digest(installation_secret, b"oidc login attempts", "sha256")

    def begin(self) -> tuple[str, Pending]:
        """Return what the browser is to keep for LIFE seconds, and the secrets of the login."""
        seed = f"{secrets.token_urlsafe(32)}.{int(time.time()) + LIFE}"
        return f"{seed}.{self._derived('cookie', seed)}", self._pending(seed)

    async def take(self, cookie: str, state: str) -> Pending:
        """Return the secrets of the login that a browser began, and never again."""
        seed = self._checked(cookie)
        pending = self._pending(seed)
        if not _same(state, pending.state):
            raise AttemptRefused
        name = USED + self._derived("id", seed)
        if not await self._redis.command("SET", name, "1", "NX", "EX", LIFE):
            raise AttemptRefused
        return pending

    def _checked(self, cookie: str) -> str:
        if len(cookie) > MOST_COOKIE:
            raise AttemptRefused
        seed, _, proof = cookie.rpartition(".")
        if not _same(proof, self._derived("cookie", seed)):
            raise AttemptRefused
        if int(seed.rpartition(".")[2]) <= time.time():
            raise AttemptRefused
        return seed

    def _pending(self, seed: str) -> Pending:
        return Pending(
            self._derived("state", seed),
            self._derived("nonce", seed),
            self._derived("verifier", seed),
        )

    def _derived(self, what: str, seed: str) -> str:
        digest = hmac.digest(self._key, f"{what}:{seed}".encode(errors="replace"), "sha256")
        return base64.urlsafe_b64encode(digest).rstrip(b"=").decode()


def _same(given: str, wanted: str) -> bool:
    return hmac.compare_digest(given.encode(errors="replace"), wanted.encode())
