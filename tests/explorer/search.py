"""The search: every interleaving, breadth first, with what must hold in each state."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from itertools import chain, combinations
from typing import TYPE_CHECKING

from tests.explorer.actors import beat_steps, bystander_steps, call_steps, hydrate, sweeper_steps
from tests.explorer.faults import SAVE, redis_faults, time_steps, worker_faults
from tests.explorer.nouns import NONE, SPENT_SNAPSHOT, Call, Hydration, Scenario, Sweep, World
from tests.explorer.protocol import (
    COUNT,
    EPOCH_WAIT_US,
    START_US,
    SUMS,
    TENANT,
    TICK_US,
    Protocol,
    cost_of,
    rid,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

ADMITTED = ("queued", "running", "row")
TOKENS = f"tg:{{{TENANT}}}:tok:t"


@dataclass(frozen=True)
class Found:
    """What a search came to; `violation` is None where every state was as it must be."""

    states: int
    complete: bool
    violation: str | None = None
    trace: tuple[str, ...] = ()


def explore(scripts: Mapping[str, str], scenario: Scenario, limit: int = 10**9) -> Found:
    """Visit at most `limit` states."""
    protocol = Protocol(scripts, scenario)
    first = protocol.canonical(_first(protocol))
    came: dict[World, tuple[World, str] | None] = {first: None}
    waiting = deque([first])
    while waiting:
        world = waiting.popleft()
        if wrong := broken(protocol, world):
            return Found(len(came), False, wrong, _trace(came, world))
        goes_on = False
        for label, untidy in _steps(protocol, world):
            goes_on = goes_on or (untidy.faults == world.faults and label != SAVE)
            after = _tidy(protocol, untidy)
            if after not in came:
                if len(came) >= limit:
                    return Found(len(came), complete=False)
                came[after] = (world, label)
                waiting.append(after)
        if not goes_on and (wrong := unfinished(protocol, world)):
            return Found(len(came), False, wrong, _trace(came, world))
    return Found(len(came), complete=True)


def _first(protocol: Protocol) -> World:
    """Return a world whose epoch is settled and that holds nothing else."""
    scenario = protocol.scenario
    world = World(
        redis=0,
        now_us=START_US,
        run=0,
        rows=(NONE,) * len(scenario.calls),
        calls=(Call(),) * len(scenario.calls),
        sweeps=(Sweep(),) * scenario.sweepers,
        bystander=protocol.hydration() if scenario.bystander else Hydration(),
        snapshot=NONE,
        faults=scenario.fault_count,
    )
    world, _ = protocol.epoch_settled(world)
    return world._replace(now_us=world.now_us + EPOCH_WAIT_US)


def _steps(protocol: Protocol, world: World) -> Iterator[tuple[str, World]]:
    calls = range(len(world.calls))
    sweeps = [at for at, sweep in enumerate(world.sweeps) if sweep not in world.sweeps[:at]]
    return chain(
        chain.from_iterable(call_steps(protocol, world, i) for i in calls),
        chain.from_iterable(beat_steps(protocol, world, i) for i in calls),
        chain.from_iterable(sweeper_steps(protocol, world, at) for at in sweeps),
        chain.from_iterable(worker_faults(protocol, world, i) for i in calls),
        bystander_steps(protocol, world),
        time_steps(protocol, world),
        redis_faults(protocol, world),
    )


def _tidy(protocol: Protocol, world: World) -> World:
    """Forget what can no longer matter, so that equal worlds are one state."""
    for i, call in enumerate(world.calls):
        if call.at == "done" and call.worker == "up" and not call.beat:
            calm = Call("done", admitted=call.admitted)
            world = world._replace(calls=(*world.calls[:i], calm, *world.calls[i + 1 :]))
    if not world.faults and world.snapshot != SPENT_SNAPSHOT:
        world = world._replace(snapshot=SPENT_SNAPSHOT)
    return protocol.canonical(world)


def broken(protocol: Protocol, world: World) -> str | None:
    """Say which invariant a state breaks."""
    exposed = sum(charged for charged in world.rows if charged != NONE)
    for i, call in enumerate(world.calls):
        if call.worker != "dead" and call.at in ADMITTED and world.rows[i] == NONE and call.text:
            exposed += cost_of(call.text)
        if _runs_on_closed_account(protocol, world, i, call):
            return f"{rid(i)} runs on, and its row is written"
    if exposed > protocol.scenario.budget and not _excused(protocol, world):
        return f"rows and calls that run may cost {exposed}, over the budget"
    if _excused(protocol, world):
        return _account(protocol, world)
    question = (world.redis, world.run, world.rows)
    if question not in protocol.accounts:
        protocol.accounts[question] = _account(protocol, world)
    return protocol.accounts[question]


def _account(protocol: Protocol, world: World) -> str | None:
    return _sums(protocol, world) or (
        _counters(protocol, world) if protocol.is_warm(world) else None
    )


def _excused(protocol: Protocol, world: World) -> bool:
    """Rule 11: data was lost, and nobody was there to put a hold back in time."""
    excused = "rule 11" not in protocol.scenario.rules_dropped
    return excused and world.lost and world.left_alone


def _runs_on_closed_account(protocol: Protocol, world: World, i: int, call: Call) -> bool:
    """Whether nobody will cut a call that is paid for already.

    A sweeper that dies between row and settle may leave one, where it had found the hold just
    before the worker went on; the account is right all the same.
    """
    runs = call.at == "running" and call.worker == "up" and world.rows[i] != NONE
    if not runs or world.unseen:
        return False
    will_look = call.beat or call.gap or (call.live and rid(i) not in protocol.holds(world))
    swept_now = any(sweep.at == "settle" and sweep.call == i for sweep in world.sweeps)
    return not will_look and not swept_now


def _counters(protocol: Protocol, world: World) -> str | None:
    """While the tenant is warm, its counters are the ledger's and the open holds'."""
    holds = protocol.holds(world)
    on_the_way = _on_the_way(world, holds) if _excused(protocol, world) else []
    for name, text in protocol.redis.view(world.redis).get(COUNT, {}).items():
        kind, scope, _period = name.split("|")
        if kind == "h":
            costs = [cost_of(holds[name]) for name in protocol.in_scope(scope) if name in holds]
            truth = {sum(costs)}
        else:
            truth = {protocol.spent(world, scope, [*holds, *late]) for late in _some(on_the_way)}
        if int(text) not in truth:
            return f"warm, and {name} is {text}, not {min(truth)}"
    return None


def _on_the_way(world: World, holds: Mapping[str, str]) -> list[str]:
    """Name the calls whose row is written, whose hold was lost, and whose settle is yet to come."""
    calls = enumerate(world.calls)
    settling = [i for i, c in calls if c.at in ("row", "settle") or c.beat == "settle"]
    settling += [sweep.call for sweep in world.sweeps if sweep.at == "settle"]
    return [rid(i) for i in set(settling) if world.rows[i] != NONE and rid(i) not in holds]


def _some(names: list[str]) -> Iterator[tuple[str, ...]]:
    return chain.from_iterable(combinations(names, size) for size in range(len(names) + 1))


def _sums(protocol: Protocol, world: World) -> str | None:
    """The token window's sum is that of its members, warm or cold."""
    view = protocol.redis.view(world.redis)
    members = sum(int(member.split("|")[0]) for member in view.get(TOKENS, {}))
    summed = int(view.get(SUMS, {}).get("t", 0))
    return None if members == summed else f"the token window sums to {summed}, not {members}"


def unfinished(protocol: Protocol, world: World) -> str | None:
    """Say what is amiss once nothing is left to happen."""
    if holds := protocol.holds(world):
        return f"holds remain: {sorted(holds)}"
    for i, call in enumerate(world.calls):
        if (
            call.admitted
            and world.rows[i] == NONE
            and not (call.worker == "dead" and _excused(protocol, world))
        ):
            return f"{rid(i)} was admitted, and has no row"
    hydration = protocol.hydration()
    while hydration.at != "idle":
        if hydration.at == "parked":
            world = world._replace(now_us=world.now_us + TICK_US)
            hydration = protocol.hydration()
        for _, after, following in hydrate(protocol, world, hydration, [("t", "total")]):
            world, hydration = after, following
    return _counters(protocol, world)


def _trace(came: Mapping[World, tuple[World, str] | None], world: World) -> tuple[str, ...]:
    labels = []
    at = came[world]
    while at is not None:
        labels.append(at[1])
        at = came[at[0]]
    return tuple(reversed(labels))
