"""What goes wrong, and time."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.explorer.actors import beat
from tests.explorer.lua_world import EMPTY
from tests.explorer.nouns import IDLE, NONE, SPENT_SNAPSHOT, Call, World
from tests.explorer.protocol import TICK_US, Protocol, rid

if TYPE_CHECKING:
    from collections.abc import Iterator

    Steps = Iterator[tuple[str, World]]

SAVE = "(last save)"
OUTAGE_US = 1_000  # a server that lost its data took time to do so
EVERY_FAULT = frozenset(
    {"kill", "stop", "restart", "loss", "rollback", "flush", "commit", "reply", "sweeper"}
)


def worker_faults(protocol: Protocol, world: World, i: int) -> Steps:
    """A worker is killed, or stopped; a stopped one goes on some day."""
    call, faults = world.calls[i], protocol.scenario.faults
    if call.worker == "stopped":
        yield f"{rid(i)} CONTINUES", world.with_call(i, worker="up")
    if not world.faults or call.worker == "dead" or (call.at == "done" and not call.beat):
        return
    if "kill" in faults:
        dead = Call("done", "dead", admitted=call.admitted)
        calls = (*world.calls[:i], dead, *world.calls[i + 1 :])
        yield (
            f"{rid(i)} KILLED",
            world._replace(calls=calls, faults=world.faults - 1, left_alone=True),
        )
    if "stop" in faults and call.live and call.worker == "up":
        stopped = world.with_call(i, worker="stopped")
        yield f"{rid(i)} STOPPED", stopped._replace(faults=world.faults - 1, left_alone=True)


def redis_faults(protocol: Protocol, world: World) -> Steps:
    """Redis restarts with its data, without, or with those of a while ago; or is emptied."""
    if not world.faults:
        return
    faults, fewer = protocol.scenario.faults, world.faults - 1
    if "restart" in faults:
        yield "REDIS RESTARTS", _reconnected(protocol, world)._replace(faults=fewer)
    gone = world._replace(redis=EMPTY, now_us=world.now_us + OUTAGE_US, faults=fewer, lost=True)
    if "loss" in faults:
        yield "REDIS LOSES ITS DATA", _reconnected(protocol, gone)
    if "flush" in faults:
        yield "FLUSHALL", gone
    if "rollback" in faults and world.snapshot == NONE:
        yield SAVE, world._replace(snapshot=world.redis)
    if world.snapshot >= 0 and world.snapshot != world.redis:
        back = _reconnected(protocol, world)
        back = back._replace(redis=world.snapshot, snapshot=SPENT_SNAPSHOT, faults=fewer, lost=True)
        yield "REDIS ROLLS BACK", back


def _reconnected(protocol: Protocol, world: World) -> World:
    """Return the world after everybody met a new server."""
    for i, call in enumerate(world.calls):
        if call.live and not call.gap and "reconnect" not in protocol.scenario.rules_dropped:
            world = world.with_call(i, gap="reconnect")
    return world._replace(run=world.run + 1)


def time_steps(protocol: Protocol, world: World) -> Steps:
    """A whole lease passes, where anybody waits for it: workers that can have renewed."""
    parked = [call.hydration.at == "parked" for call in world.calls]
    busy = any(call.worker == "up" and call.beat for call in world.calls)
    orphan = any(_is_orphan(protocol, world, i) for i in range(len(world.calls)))
    if busy or not (orphan or any(parked) or world.bystander.at == "parked"):
        return
    world = world._replace(now_us=world.now_us + TICK_US)
    for i, call in enumerate(world.calls):
        if call.live and call.worker == "up":
            world = beat(protocol, world, i)
        elif call.live:
            world = world.with_call(
                i, gap="" if "late" in protocol.scenario.rules_dropped else "late"
            )
        if parked[i]:
            world = world.with_call(i, hydration=IDLE)
    if world.bystander.at == "parked":
        world = world._replace(bystander=protocol.hydration())
    yield "(a lease passes)", world


def _is_orphan(protocol: Protocol, world: World, i: int) -> bool:
    call = world.calls[i]
    cared_for = call.worker == "up" and call.live
    there = rid(i) in protocol.holds(world)
    return there and not cared_for and protocol.lost_charge(world, i) is None
