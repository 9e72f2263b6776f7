"""Calls that are under way, and the leash by which each can be cut."""

from __future__ import annotations

import math
from contextlib import contextmanager
from copy import copy
from typing import TYPE_CHECKING

import trio

from trio_gateway.core.errors import UpstreamTimeout

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from types import TracebackType
    from typing import Self

    from trio_gateway.core.domain import Principal
    from trio_gateway.core.errors import GatewayError

# Moving a deadline costs as much as a read; within a tenth it stays where it is.
SLACK = 1.1


class Cover:
    """A block that a leash can end, or a deadline that moves with what is waited for.

    After a cut the block raises the leash's reason, after the deadline UpstreamTimeout or what
    `allow` named. One scope serves many waits, and a class it is because a generator would
    cost more than most of them.
    """

    __slots__ = ("_end", "_late", "_leash", "_scope")

    def __init__(self, leash: Leash, deadline: float) -> None:
        """Made by `Leash.cover` only."""
        self._leash = leash
        self._end = deadline
        self._late: type[GatewayError] | None = UpstreamTimeout
        self._scope = trio.CancelScope(deadline=deadline)

    def __enter__(self) -> Self:
        """Put the block on the leash; after a cut it ends at its first checkpoint."""
        self._scope.__enter__()
        if self._leash.reason is not None:
            self._scope.cancel()
        self._leash.scopes.add(self._scope)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool | None:
        """Take it off the leash; raise why it ended early, if it did."""
        self._leash.scopes.discard(self._scope)
        swallow = self._scope.__exit__(kind, error, traceback)
        if self._scope.cancelled_caught and self._late is not None:
            # A copy: a leash that kept what was raised would keep the whole call with it.
            raise copy(self._leash.reason) or self._late() from None
        return swallow

    def allow(self, seconds: float, late: type[GatewayError] = UpstreamTimeout) -> None:
        """Let what follows last so long, or up to a tenth longer; never past the block's own end.

        `late` is raised should it last longer.
        """
        if self._late is None:  # released: nothing prolongs it
            return
        left = self._scope.deadline - trio.current_time()
        if self._late is not late or not seconds <= left <= seconds * SLACK:
            deadline = trio.current_time() + seconds * SLACK
            self._late = late if deadline < self._end else UpstreamTimeout
            self._scope.deadline = min(deadline, self._end)

    def release(self, seconds: float) -> None:
        """Say that the block has done its work: the rest has so long, and no way to fail."""
        self._leash.scopes.discard(self._scope)
        self._late = None
        self._scope.deadline = trio.current_time() + seconds


class Leash:
    """One call's leash, from the step that proved its key to its end.

    The first cut wins: its error is what the caller hears. `client_left` is for whoever
    notices the hang-up, to tell it from a server that is being stopped.
    """

    __slots__ = ("client_left", "principal", "reason", "request_id", "scopes")

    def __init__(self, principal: Principal, request_id: str = "") -> None:
        """Made by `Live.hold` only."""
        self.principal = principal
        self.request_id = request_id
        self.reason: GatewayError | None = None
        self.client_left = False
        self.scopes: set[trio.CancelScope] = set()  # of its covers

    def cut(self, reason: GatewayError) -> None:
        """End the call wherever it stands."""
        if self.reason is None:
            self.reason = reason
            for scope in tuple(self.scopes):
                scope.cancel()

    def fail_if_cut(self) -> None:
        """Raise the reason, after a wait that nothing could end, where there was a cut."""
        if self.reason is not None:
            raise copy(self.reason)

    def cover(self, deadline: float = math.inf) -> Cover:
        """Let a cut, or the deadline (trio time), end a block."""
        return Cover(self, deadline)


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
    def hold(self, principal: Principal, request_id: str = "") -> Iterator[Leash]:
        """Keep a call on a leash; enter it in the same step that yields its principal."""
        leash = Leash(principal, request_id)
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

    def cut_call(self, request_id: str, reason: GatewayError) -> bool:
        """Cut one call; return whether it is here."""
        # Rare, so that calls need not pay for an index.
        for leashes in self._leashes.values():
            for leash in leashes:
                if leash.request_id == request_id:
                    leash.cut(reason)
                    return True
        return False

    async def ended(self) -> None:
        """Wait until no call is under way."""
        while self._leashes:
            await self._empty.wait()
