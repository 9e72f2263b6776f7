"""Hashing and proving the secrets of keys with argon2id, in threads and few at a time."""

from __future__ import annotations

import trio
from argon2 import PasswordHasher
from argon2.exceptions import InvalidHashError, VerificationError

# A secret carries 190 random bits, so that a guess is hopeless at any cost: these figures
# only have to keep a stolen table useless, and a proof short (about 20 ms).
MEMORY_KIB = 19 * 1024
PASSES = 2
LANES = 1
PROOFS_AT_ONCE = 2


class Secrets:
    """argon2id under a limiter of its own, so that proofs never starve other threads."""

    def __init__(self, hasher: PasswordHasher | None = None) -> None:
        """Take this release's parameters unless `hasher` carries others."""
        self._hasher = hasher or PasswordHasher(
            time_cost=PASSES, memory_cost=MEMORY_KIB, parallelism=LANES
        )
        self._limiter = trio.CapacityLimiter(PROOFS_AT_ONCE)

    async def hash(self, secret: str) -> str:
        """Return the encoded hash of a secret: parameters, salt and digest."""
        return await trio.to_thread.run_sync(
            self._hasher.hash, secret, limiter=self._limiter, abandon_on_cancel=True
        )

    async def verify(self, encoded: str, secret: str) -> bool:
        """Whether the secret is the one behind `encoded`; a damaged hash proves nothing."""
        return await trio.to_thread.run_sync(
            self._verify, encoded, secret, limiter=self._limiter, abandon_on_cancel=True
        )

    def outdated(self, encoded: str) -> bool:
        """Whether a valid encoded hash was made with other parameters than today's."""
        return self._hasher.check_needs_rehash(encoded)

    def _verify(self, encoded: str, secret: str) -> bool:
        try:
            return self._hasher.verify(encoded, secret)
        except (VerificationError, InvalidHashError):
            return False
