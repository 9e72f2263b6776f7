"""Who goes next to which backend: pure decisions, nothing here waits or looks at a clock."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

Priority = Literal["live", "batch"]

BACKOFF_FIRST = 0.5  # seconds
BACKOFF_MOST = 8.0


def _nothing() -> None:
    """Wake nobody."""


@dataclass(slots=True, eq=False)
class Waiter:
    """One call that waits for a slot; `backend` is set when it has one, then `wake` is called."""

    tenant: str
    share: int
    candidates: tuple[str, ...]
    priority: Priority = "live"
    wake: Callable[[], None] = _nothing
    backend: str | None = None


@dataclass(slots=True)
class _Turn:
    """One tenant in a line: its waiters in the order they came, and what is left of its turn."""

    tenant: str
    credit: int
    waiters: list[Waiter] = field(default_factory=list)


class Line:
    """One priority's tenants, taken in turn; a tenant's turn lasts for `share` grants.

    A tenant whose waiters cannot be placed now keeps its place, so that no tenant starves:
    while it waits for a backend, each other tenant is given that backend at most `share`
    times, however often backends that it cannot use come free in between.
    """

    def __init__(self) -> None:
        """Begin empty."""
        self._turns: list[_Turn] = []

    def __len__(self) -> int:
        """How many wait."""
        return sum(len(turn.waiters) for turn in self._turns)

    def join(self, waiter: Waiter) -> None:
        """Stand behind the tenant's others; a tenant that is new goes to the back."""
        for turn in self._turns:
            if turn.tenant == waiter.tenant:
                turn.waiters.append(waiter)
                return
        self._turns.append(_Turn(waiter.tenant, max(1, waiter.share), [waiter]))

    def leave(self, waiter: Waiter) -> bool:
        """Step out of the line; False if the waiter was not in it."""
        for turn in self._turns:
            if turn.tenant == waiter.tenant and waiter in turn.waiters:
                turn.waiters.remove(waiter)
                if not turn.waiters:
                    self._turns.remove(turn)
                return True
        return False

    def take(self, place: Callable[[Sequence[str]], str | None]) -> Waiter | None:
        """Take out the next waiter that `place` has a backend for, its backend set."""
        refused: set[tuple[str, ...]] = set()  # most wait for the same: ask once
        for turn in self._turns:
            for waiter in turn.waiters:
                if waiter.candidates in refused:
                    continue
                backend = place(waiter.candidates)
                if backend is None:
                    refused.add(waiter.candidates)
                else:
                    waiter.backend = backend
                    self._spend(turn, waiter)
                    return waiter
        return None

    def _spend(self, turn: _Turn, waiter: Waiter) -> None:
        turn.waiters.remove(waiter)
        turn.credit -= 1
        if not turn.waiters:
            self._turns.remove(turn)
        elif turn.credit <= 0:
            turn.credit = max(1, turn.waiters[0].share)
            self._turns.remove(turn)
            self._turns.append(turn)


class Slots:
    """The backends' slots, their health, and the line in front of them.

    `now` is in seconds of any steady clock. Live calls go before batch calls, always.
    """

    def __init__(self, backends: Sequence[str], slots: int) -> None:
        """Give each backend `slots` slots."""
        self.each = slots
        self._free = dict.fromkeys(backends, slots)
        self._total = len(self._free) * slots
        self._lines: dict[Priority, Line] = {"live": Line(), "batch": Line()}
        self._failures: dict[str, tuple[int, float]] = {}  # in a row, skipped until

    @property
    def waiting(self) -> int:
        """How many calls wait, of both priorities."""
        return sum(map(len, self._lines.values()))

    @property
    def lines(self) -> dict[str, int]:
        """How many calls wait, by priority."""
        return {priority: len(line) for priority, line in self._lines.items()}

    @property
    def in_flight(self) -> int:
        """How many slots are taken."""
        return self._total - sum(self._free.values())

    def free(self, backend: str) -> int:
        """How many of a backend's slots are not taken."""
        return self._free.get(backend, 0)

    def knows(self, candidates: Sequence[str]) -> bool:
        """Whether any of them is a backend at all."""
        return any(backend in self._free for backend in candidates)

    def join(self, waiter: Waiter) -> None:
        """Put a call in line."""
        self._lines[waiter.priority].join(waiter)

    def leave(self, waiter: Waiter) -> bool:
        """Take a call out of line; False if it is not in it, as when it has a slot."""
        return self._lines[waiter.priority].leave(waiter)

    def grant(self, now: float) -> Iterator[Waiter]:
        """Give out every slot that somebody in line can use, in order."""
        for line in self._lines.values():  # live first
            while waiter := line.take(lambda candidates: self.place(candidates, now)):
                assert waiter.backend is not None  # noqa: S101 - take has set it
                self.occupy(waiter.backend)
                yield waiter

    def place(self, candidates: Sequence[str], now: float) -> str | None:
        """Choose the healthy candidate with most free slots, the first of equals; or None.

        With no healthy one all are tried: a guess is better than a certain refusal.
        """
        known = [backend for backend in candidates if backend in self._free]
        healthy = [backend for backend in known if not self.skipped(backend, now)]
        best = max(healthy or known, key=self._free.__getitem__, default=None)
        return best if best is not None and self._free[best] > 0 else None

    def occupy(self, backend: str) -> None:
        """Take a slot that `place` has just named."""
        self._free[backend] -= 1

    def release(self, backend: str) -> None:
        """Put a slot back."""
        self._free[backend] += 1

    def report(self, backend: str, now: float, *, ok: bool) -> None:
        """Remember whether a backend could be reached.

        Failures while it is being skipped belong to calls sent before, and count once.
        """
        if ok:
            self._failures.pop(backend, None)
        elif backend in self._free and not self.skipped(backend, now):
            count = self._failures.get(backend, (0, 0.0))[0] + 1
            pause = min(BACKOFF_MOST, BACKOFF_FIRST * 2 ** min(count - 1, 10))
            self._failures[backend] = count, now + pause

    def skipped(self, backend: str, now: float) -> bool:
        """Whether the backend is resting after refusals."""
        failure = self._failures.get(backend)
        return failure is not None and now < failure[1]

    def recovery(self, now: float) -> float | None:
        """When the next resting backend will be tried again, or None."""
        return min((until for _, until in self._failures.values() if until > now), default=None)
