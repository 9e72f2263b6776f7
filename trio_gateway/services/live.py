"""Calls that are under way, and the leash by which each can be cut."""

from __future__ import annotations

import math
from contextlib import contextmanager
from typing import TYPE_CHECKING

import trio

from trio_gateway.core.errors import UpstreamTimeout

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from trio_gateway.core.domain import Principal
    from trio_gateway.core.errors import GatewayError


class Cover:
    """A block that a leash can end, until it is released."""

    __slots__ = ("_scopes", "scope")

    def __init__(self, scopes: set[trio.CancelScope], scope: trio.CancelScope) -> None:
        """Made by `Leash.cover` only."""
        self._scopes = scopes
        self.scope = scope

    def release(self) -> None:
        """Take the block off the leash and its deadline: an inner cover has taken over."""
        self._scopes.discard(self.scope)
        self.scope.deadline = math.inf

    def fail_if_late(self) -> None:
        """Raise UpstreamTimeout, after the block, where its deadline ended it."""
        if self.scope.cancelled_caught:
            raise UpstreamTimeout


class Leash:
    """One call's leash, from the step that proved its key to its end.

    The first cut wins: its error is what the caller hears. `client_left` is for whoever
    notices the hang-up, to tell it from a server that is being stopped.
    """

    __slots__ = ("_scopes", "client_left", "principal", "reason")

    def __init__(self, principal: Principal) -> None:
        """Made by `Live.hold` only."""
        self.principal = principal
        self.reason: GatewayError | None = None
        self.client_left = False
        self._scopes: set[trio.CancelScope] = set()

    def cut(self, reason: GatewayError) -> None:
        """End the call wherever it stands."""
        if self.reason is None:
            self.reason = reason
            for scope in tuple(self._scopes):
                scope.cancel()

    @contextmanager
    def cover(self, deadline: float = math.inf) -> Iterator[Cover]:
        """Let a cut, or the deadline (trio time), end this block.

        After a cut the block raises its reason; after the deadline it just ends: ask the cover
        with `fail_if_late`.
        """
        with trio.CancelScope(deadline=deadline) as scope:
            if self.reason is not None:
                scope.cancel()
            self._scopes.add(scope)
            try:
                yield Cover(self._scopes, scope)
            finally:
                self._scopes.discard(scope)
        if scope.cancelled_caught and self.reason is not None:
            raise self.reason


class Live:
    """Every leash of this worker, by key and by tenant."""

    def __init__(self) -> None:
        """Begin with none."""
        self._leashes: dict[str, set[Leash]] = {}
        self._empty = trio.Event()
        self._empty.set()

    def __len__(self) -> int:
        """How many calls are under way."""
        return sum(map(len, self._leashes.values()))

    @contextmanager
    def hold(self, principal: Principal) -> Iterator[Leash]:
        """Keep a call on a leash; enter it in the same step that yields its principal."""
        leash = Leash(principal)
        leashes = self._leashes.setdefault(principal.key.id, set())
        leashes.add(leash)
        if self._empty.is_set():
            self._empty = trio.Event()
        try:
            yield leash
        finally:
            leashes.discard(leash)
            if not leashes and self._leashes.get(principal.key.id) is leashes:
                del self._leashes[principal.key.id]
            if not self._leashes:
                self._empty.set()

    def keys(self) -> set[str]:
        """Name the keys that have calls under way."""
        return set(self._leashes)

    def keys_of(self, tenant_id: str) -> set[str]:
        """Name the keys of a tenant that have calls under way."""
        return {
            key_id
            for key_id, leashes in self._leashes.items()
            if any(leash.principal.tenant.id == tenant_id for leash in leashes)
        }

    def cut(self, key_ids: Iterable[str], reason: Callable[[], GatewayError]) -> int:
        """Cut every call of these keys; return how many."""
        cut = [leash for key_id in key_ids for leash in self._leashes.get(key_id, ())]
        for leash in cut:
            leash.cut(reason())
        return len(cut)

    async def ended(self) -> None:
        """Wait until no call is under way."""
        while self._leashes:
            await self._empty.wait()
