"""Keys proven a short while ago, remembered under a keyed digest of their text.

To forget a key is to stop believing what its row said, not to unlearn that its text is the
one behind its hash. So after a reconnect, when everything is forgotten, each key costs one
read at its next use and no argon2.
"""

from __future__ import annotations

import math
import time
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from datetime import datetime

    from trio_gateway.core.domain import Principal


def key_scope(key_id: str) -> str:
    """Name what a change of one key touches."""
    return f"k:{key_id}"


def tenant_scope(tenant_id: str) -> str:
    """Name what a change of one tenant touches."""
    return f"t:{tenant_id}"


def scopes_of(principal: Principal) -> tuple[str, str]:
    """Name the two things whose change makes a principal stale."""
    return key_scope(principal.key.id), tenant_scope(principal.tenant.id)


@dataclass(slots=True, eq=False)
class Proof:
    """A key's text proven against the encoded hash `encoded`, and what its row said.

    `expires_at` is when the key, or the overlap of a rotated secret, ends. From `changes_at` on,
    in seconds of the cache's clock, the row says something else though nobody changed it.
    """

    principal: Principal
    encoded: str
    expires_at: datetime | None
    changes_at: float = math.inf
    filled_at: float = field(default=0.0)  # seconds of the cache's clock
    fresh: bool = field(default=True)


class KeyCache:
    """At most `size` proofs, the least used leave first; each is believed for `ttl` seconds."""

    def __init__(self, size: int, ttl: float, clock: Callable[[], float] = time.monotonic) -> None:
        """Start empty; `clock` counts seconds and never goes back."""
        self._size = size
        self._ttl = ttl
        self._clock = clock
        self._proofs: OrderedDict[bytes, Proof] = OrderedDict()
        self._names: dict[str, set[bytes]] = {}  # scope -> the digests it touches

    def now(self) -> float:
        """Return what the cache's clock says."""
        return self._clock()

    def fresh(self, name: bytes) -> Proof | None:
        """Return what may be believed without a read."""
        proof = self._proofs.get(name)
        if proof is None or not proof.fresh:
            return None
        if self.now() >= min(proof.changes_at, proof.filled_at + self._ttl):
            return None
        self._proofs.move_to_end(name)
        return proof

    def encoded(self, name: bytes) -> str | None:
        """Return the hash that this very text was proven against, stale or not."""
        proof = self._proofs.get(name)
        return proof.encoded if proof else None

    def fill(self, name: bytes, proof: Proof) -> None:
        """Remember a proof, and drop the least used one where there is no room."""
        if name in self._proofs:
            self._drop(name)
        elif len(self._proofs) >= self._size:
            self._drop(next(iter(self._proofs)))
        proof.filled_at = self.now()
        self._proofs[name] = proof
        for scope in scopes_of(proof.principal):
            self._names.setdefault(scope, set()).add(name)

    def forget(self, scope: str) -> None:
        """Believe nothing more that touches `scope`."""
        for name in self._names.get(scope, ()):
            self._proofs[name].fresh = False

    def forget_all(self) -> None:
        """Believe nothing more."""
        for proof in self._proofs.values():
            proof.fresh = False

    def __iter__(self) -> Iterator[bytes]:
        """Iterate over the digests, the least used first."""
        return iter(self._proofs)

    def _drop(self, name: bytes) -> None:
        proof = self._proofs.pop(name)
        proof.fresh = False  # nobody can be told any more that it went stale
        for scope in scopes_of(proof.principal):
            names = self._names[scope]
            names.discard(name)
            if not names:
                del self._names[scope]
