"""Who is calling: the text of a key in, a principal out.

    shape and check   from the text alone: a made-up key costs no store and no argon2
    cache             believed only while the revocation listener says it may be (`trusted`)
    row               one query for the key, its tenant and its revocations
    secret            argon2id, in a thread, once for all callers that show the key together

A row that was read before somebody was told to forget it is not used: the read is repeated.
Whatever the reason a key is not honored, the caller sees the one `Unauthenticated`. Work that
goes on without its caller recalls the principal by the key's id: the same, without a secret.
"""

from __future__ import annotations

import math
import secrets
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import trio

from trio_gateway.core.errors import GatewayError, StoreUnavailable, Unauthenticated
from trio_gateway.core.keys import digest, parse_key
from trio_gateway.services.key_cache import KeyCache, Proof, key_scope, scopes_of, tenant_scope
from trio_gateway.services.secrets import Secrets
from trio_gateway.services.tenant_rows import (
    FIND_KEY,
    RECALL_KEY,
    STANDING_KEYS,
    Candidate,
    candidate,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from trio_gateway.clients.postgres import Postgres
    from trio_gateway.core.domain import Principal

CACHE_SIZE = 10_000  # keys
CACHE_TTL = 60.0  # seconds; the backstop behind the notifications
ATTEMPTS = 8  # reads of one row that changes at every read


class Tenants:
    """Proves keys. Errors raised: Unauthenticated, StoreUnavailable.

    `trusted` is set by whoever listens for changes: while it is False every call reads its
    row afresh. Set it only after `forget_all`, once the listening has begun.
    """

    def __init__(
        self,
        postgres: Postgres,
        installation_secret: bytes,
        *,
        hashing: Secrets | None = None,
        cache: KeyCache | None = None,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        """Start with nothing proven and no trust; `now` is what expiry is compared with."""
        self.trusted = False
        self._postgres = postgres
        self._installation_secret = installation_secret
        self._process_secret = secrets.token_bytes(32)
        self._hashing = hashing or Secrets()
        self._cache = cache or KeyCache(CACHE_SIZE, CACHE_TTL)
        self._now = now
        self._flights: dict[bytes, _Flight] = {}
        self._ticks = 0

    async def authenticate(self, text: str | None) -> Principal:
        """Return the principal behind a key's text.

        There is no checkpoint between the last look at what was forgotten and the return, so
        a caller that registers the principal at once can be cut from the first instant on.
        """
        parsed = parse_key(text, self._installation_secret) if text else None
        if text is None or parsed is None:
            raise Unauthenticated
        name = digest(self._process_secret, text)
        return await self._answer(_Question(name, FIND_KEY, parsed.public_id, parsed.secret))

    async def recall(self, key_id: str) -> Principal:
        """Return the principal of a key by its id, as it stands now, for work begun with it.

        What `authenticate` says of the return holds here too; a rotated key is the same key.
        """
        # No text of a key has a space: the name cannot be that of one.
        name = digest(self._process_secret, f"id {key_id}")
        return await self._answer(_Question(name, RECALL_KEY, key_id, None))

    async def standing(self, key_ids: Collection[str]) -> set[str]:
        """Return which of these keys may go on with calls in flight.

        Revoked, disabled and deleted keys may not; expiry is for new calls only.
        """
        rows = await self._postgres.fetch(STANDING_KEYS, list(key_ids))
        return {row["id"] for row in rows}

    def forget_key(self, key_id: str) -> None:
        """Believe nothing known or being read about a key."""
        self._forget(key_scope(key_id))

    def forget_tenant(self, tenant_id: str) -> None:
        """Believe nothing known or being read about a tenant's keys."""
        self._forget(tenant_scope(tenant_id))

    def forget_all(self) -> None:
        """Believe nothing known or being read about anyone."""
        self._cache.forget_all()
        for flight in self._flights.values():
            flight.forgotten_all = True

    def _forget(self, scope: str) -> None:
        self._cache.forget(scope)
        for flight in self._flights.values():
            flight.forgotten.add(scope)

    async def _answer(self, question: _Question) -> Principal:
        proof = self._cache.fresh(question.name) if self.trusted else None
        if proof is None:
            proof = await self._prove(question)
        if self._over(proof.expires_at):
            raise Unauthenticated
        return proof.principal

    async def _prove(self, question: _Question) -> Proof:
        """Lead a flight, or wait for another's and take its answer where that will do."""
        arrived = self._tick()
        for _ in range(ATTEMPTS):
            flight = self._flights.get(question.name)
            if flight is None:
                return await self._lead(question)
            await flight.done.wait()
            # An answer read before we came is good enough only while changes are heard of.
            recent = flight.began > arrived
            proof = flight.proof
            if proof is not None and proof.fresh and (recent or self.trusted):
                return proof
            if flight.failure is StoreUnavailable or (flight.failure is not None and recent):
                raise flight.failure
        raise StoreUnavailable

    async def _lead(self, question: _Question) -> Proof:
        flight = self._flights[question.name] = _Flight()
        try:
            flight.proof = await self._fly(flight, question)
        except GatewayError as error:
            flight.failure = type(error)
            raise
        else:
            return flight.proof
        finally:
            # After a cancel there is neither proof nor failure, and a follower leads anew.
            del self._flights[question.name]
            flight.done.set()

    async def _fly(self, flight: _Flight, question: _Question) -> Proof:
        encoded = self._cache.encoded(question.name)
        for _ in range(ATTEMPTS):
            flight.begin(self._tick())
            asked_at = self._cache.now()
            found = await self._read(question)
            encoded = await self._shown(found, question.secret, encoded)
            if flight.stale(found):
                continue
            if found is None or encoded is None:
                raise Unauthenticated
            # Counted from before the read, so that no increase is believed past its end.
            left = math.inf if found.extension_left is None else found.extension_left
            proof = Proof(found.principal, encoded, found.expires_at, asked_at + left)
            self._cache.fill(question.name, proof)
            return proof
        raise StoreUnavailable

    async def _read(self, question: _Question) -> Candidate | None:
        row = await self._postgres.fetch_one(question.query, question.id)
        if row is None:
            return None
        return candidate(dict(row), row["public_id"] if question.secret is None else question.id)

    async def _shown(
        self, found: Candidate | None, secret: str | None, known: str | None
    ) -> str | None:
        """Return the hash that the secret is proven against; None where it is not honored.

        `known` is a hash that this secret has been proven against before; no secret means that
        none is asked for.
        """
        if found is None or not found.standing or self._over(found.expires_at):
            return None
        if secret is None or found.encoded == known:
            return found.encoded
        if not await self._hashing.verify(found.encoded, secret):
            return None
        if found.current and self._hashing.outdated(found.encoded):
            return await self._rehash(found, secret)
        return found.encoded

    async def _rehash(self, found: Candidate, secret: str) -> str:
        """Store the secret under today's parameters; the row may have changed meanwhile."""
        encoded = await self._hashing.hash(secret)
        try:
            row = await self._postgres.fetch_one(
                "UPDATE gateway.api_keys SET hash = $3 WHERE id = $1 AND hash = $2 RETURNING id",
                found.principal.key.id,
                found.encoded,
                encoded,
            )
        except StoreUnavailable:
            return found.encoded  # the key is proven; there is a next use
        return encoded if row else found.encoded

    def _over(self, end: datetime | None) -> bool:
        return end is not None and end <= self._now()

    def _tick(self) -> int:
        self._ticks += 1
        return self._ticks


@dataclass(frozen=True, slots=True)
class _Question:
    """Whose key is meant: `query` finds it by `id`; `name` is what the cache knows it by."""

    name: bytes
    query: str
    id: str
    # To be proven; None where the id comes from the gateway's own rows.
    secret: str | None = field(repr=False)


class _Flight:
    """One proof under way, shared by all who show the same key meanwhile."""

    def __init__(self) -> None:
        self.done = trio.Event()
        self.proof: Proof | None = None
        self.failure: type[GatewayError] | None = None
        self.began = 0
        self.forgotten: set[str] = set()
        self.forgotten_all = False

    def begin(self, tick: int) -> None:
        """Note that a read begins: whatever was forgotten so far does not concern it."""
        self.began = tick
        self.forgotten.clear()
        self.forgotten_all = False

    def stale(self, found: Candidate | None) -> bool:
        """Whether what was read has been forgotten since its read began."""
        if self.forgotten_all or found is None:
            return self.forgotten_all
        return not self.forgotten.isdisjoint(scopes_of(found.principal))
