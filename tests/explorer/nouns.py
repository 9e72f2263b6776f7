"""The searched world: immutable, hashable, and small."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple

NONE = -1  # no number yet
SPENT_SNAPSHOT = -2  # the snapshot was used: Redis loses its last second once


class Hydration(NamedTuple):
    """Where a hydrate stands, and what it remembers between its steps."""

    at: str = "idle"  # idle, begin, epoch, snapshot, end; parked while the epoch is young
    run: str = ""
    gen: int = NONE
    fields: tuple[str, ...] = ()
    args: tuple[str | int, ...] = ()  # open holds before the snapshot, counters after it


IDLE = Hydration()


class Call(NamedTuple):
    """A call, with the worker that runs it (each has its own)."""

    at: str = "reserve"  # reserve, queued, running, row, settle, doubt, refusal, done
    worker: str = "up"  # up, stopped, dead
    admitted: bool = False  # its hold was taken, whoever knows it
    live: bool = False  # renewed by its worker
    beat: str = ""  # what the renewal task has yet to do: look, or settle
    text: str = ""  # the hold, as reserve returned it
    phase: str = ""
    gap: str = ""  # since the last renewal: a whole lease (late), or a reconnect
    charge: int = NONE  # of the row that its worker would write
    stored: int = NONE  # of the row that its worker read back
    hydration: Hydration = IDLE


class Sweep(NamedTuple):
    """A sweeper that has found a hold (`write`), or stored its row (`settle`)."""

    at: str = "idle"
    call: int = NONE
    amount: int = NONE


class World(NamedTuple):
    """Redis, PostgreSQL, and everybody who talks to them."""

    redis: int
    now_us: int
    run: int
    rows: tuple[int, ...]  # the ledger: what each call's row charges, NONE where there is none
    calls: tuple[Call, ...]
    sweeps: tuple[Sweep, ...]
    bystander: Hydration  # hydrates once and reserves nothing
    snapshot: int = NONE  # an older state of Redis
    faults: int = 0  # still allowed
    lost: bool = False  # Redis lost data
    left_alone: bool = False  # a hold was: its worker died, stood still, or had not heard of it
    unseen: bool = False  # a row written by a sweeper that died, after its worker had looked

    def with_call(self, i: int, **changes: Any) -> World:
        """Return the world with one call changed."""
        call = self.calls[i]._replace(**changes)
        return self._replace(calls=(*self.calls[:i], call, *self.calls[i + 1 :]))


@dataclass(frozen=True)
class Plan:
    """One call to be explored; money in units, weight 1."""

    key: str
    ask: int
    queued: bool = False
    key_budget: int = -1


@dataclass(frozen=True)
class Scenario:
    """What is searched: who takes part, and what may go wrong how often."""

    calls: tuple[Plan, ...] = (Plan("a", 2), Plan("b", 2, queued=True, key_budget=9))
    budget: int = 5  # of the tenant, in total
    sweepers: int = 2
    bystander: bool = True
    faults: frozenset[str] = frozenset()
    fault_count: int = 0
    rules_dropped: frozenset[str] = field(default_factory=frozenset)  # those that Python keeps
