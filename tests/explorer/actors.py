"""Who takes part: calls with their workers, sweepers, and one more hydrate.

Every function yields (label, world) pairs: what may happen next. One pair is one atomic step.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.explorer.nouns import IDLE, NONE, Hydration, Sweep, World
from tests.explorer.protocol import Protocol, cost_of, rid, run_id
from trio_gateway.services.quota.holds import DISPATCHED, FINAL, QUEUED

if TYPE_CHECKING:
    from collections.abc import Iterator

    Steps = Iterator[tuple[str, World]]

USAGE = 2  # what upstream says at the end; a sweeper estimates 1


def call_steps(protocol: Protocol, world: World, i: int) -> Steps:
    """One call, as its own task runs it."""
    call = world.calls[i]
    if call.worker != "up":
        return
    if call.at == "reserve":
        if call.hydration.at == "idle":
            yield from _reserve(protocol, world, i)
        else:
            plan = protocol.scenario.calls[i]
            needed = [("t", "total")] + ([(f"k:{plan.key}", "day")] if plan.key_budget >= 0 else [])
            for label, after, hydration in hydrate(protocol, world, call.hydration, needed):
                yield f"{rid(i)} {label}", after.with_call(i, hydration=hydration)
    elif call.at == "doubt":
        text = protocol.holds(world).get(rid(i))
        found = {"at": "row", "admitted": True, "charge": 0, "text": text}
        yield f"{rid(i)} doubt", world.with_call(i, **(found if text else {"at": "done"}))
    elif call.at == "queued":
        after, back = protocol.renew(world, i, DISPATCHED)
        late = call.gap == "late"
        refused = back or late or (not call.live and "mark" not in protocol.scenario.rules_dropped)
        yield (
            f"{rid(i)} mark back={back}",
            _over(after, i, 0) if refused else after.with_call(i, at="running"),
        )
        yield f"{rid(i)} hang-up", _over(world, i, 0)
        if "reply" in protocol.scenario.faults and world.faults:
            unheard = _over(after, i, 0)._replace(faults=world.faults - 1)
            yield f"{rid(i)} MARK UNANSWERED", unheard
    elif call.at == "running":
        yield f"{rid(i)} finish", _over(world, i, min(USAGE, cost_of(call.text)))
        yield f"{rid(i)} refused upstream", _over(world, i, 0)
    elif call.at == "row":
        after, stored = protocol.write(world, i, call.charge)
        own = call.charge if "stored row" in protocol.scenario.rules_dropped else stored
        yield f"{rid(i)} row {stored}", after.with_call(i, at="settle", stored=own)
        if "commit" in protocol.scenario.faults and world.faults and after != world:
            yield f"{rid(i)} COMMIT UNANSWERED", after._replace(faults=world.faults - 1)
    elif call.at == "settle":
        yield from _settle(protocol, world, i)


def _over(world: World, i: int, charge: int) -> World:
    return world.with_call(i, at="row", charge=charge, phase=FINAL)


def _reserve(protocol: Protocol, world: World, i: int) -> Steps:
    after, reply = protocol.reserve(world, i)
    if reply[0] == "cold":
        yield f"{rid(i)} reserve: cold", after.with_call(i, hydration=protocol.hydration())
    elif reply[0] == "no":
        yield f"{rid(i)} reserve: no", after.with_call(i, at="done")
    else:
        phase = QUEUED if protocol.scenario.calls[i].queued else DISPATCHED
        at = "queued" if phase == QUEUED else "running"
        after = after.with_call(i, at=at, admitted=True, live=True, text=reply[13], phase=phase)
        yield f"{rid(i)} reserve: ok", after
        if "reply" in protocol.scenario.faults and world.faults:
            doubt = after.with_call(i, at="doubt", admitted=False, live=False, text="", phase="")
            doubt = doubt._replace(faults=world.faults - 1, left_alone=True)
            yield f"{rid(i)} RESERVE UNANSWERED", doubt


def _settle(protocol: Protocol, world: World, i: int) -> Steps:
    call = world.calls[i]
    sent = world.with_call(i, live=False)
    after = protocol.settle(sent, i, call.stored)
    yield f"{rid(i)} settle", after.with_call(i, at="done")
    if "reply" in protocol.scenario.faults and world.faults:
        yield f"{rid(i)} SETTLE UNANSWERED", after._replace(faults=world.faults - 1)
        unsent = sent._replace(faults=world.faults - 1, left_alone=True)
        yield f"{rid(i)} SETTLE NOT SENT", unsent


def beat_steps(protocol: Protocol, world: World, i: int) -> Steps:
    """The renewal task of a call's worker."""
    call = world.calls[i]
    if call.worker != "up":
        return
    if call.beat == "look":
        if world.rows[i] == NONE or call.at not in ("queued", "running"):
            yield f"{rid(i)} look: nothing", world.with_call(i, beat="")
        else:
            after = world.with_call(i, beat="settle", live=False)
            cut = call.at == "running"
            yield f"{rid(i)} look: swept", _over(after, i, 0) if cut else after
    elif call.beat == "settle":
        after = protocol.settle(world, i, world.rows[i])
        yield f"{rid(i)} settle as swept", after.with_call(i, beat="")
    elif call.live:
        after = beat(protocol, world, i)
        if after != world:
            yield f"{rid(i)} renew beat={after.calls[i].beat}", after
        if "reply" in protocol.scenario.faults and world.faults and after.calls[i].beat:
            gap = "" if "reconnect" in protocol.scenario.rules_dropped else "reconnect"
            lost = after.with_call(i, beat="", gap=gap)
            yield f"{rid(i)} RENEW UNANSWERED", lost._replace(faults=world.faults - 1)


def beat(protocol: Protocol, world: World, i: int) -> World:
    """Renew one live hold; where it was put back, or may have been, the ledger is asked next."""
    call = world.calls[i]
    after, back = protocol.renew(world, i, call.phase)
    return after.with_call(i, beat="look" if back or call.gap else "", gap="")


def hydrate(
    protocol: Protocol, world: World, hydration: Hydration, needed: list[tuple[str, str]]
) -> Iterator[tuple[str, World, Hydration]]:
    """One step of a hydrate; `Hydrator.warm` in trio_gateway is what this repeats."""
    args: list[str | int]
    early = "epoch after begin" in protocol.scenario.rules_dropped
    if hydration.at == "epoch":
        after, settled = protocol.epoch_settled(world)
        going_on = hydration._replace(at="begin" if early else "snapshot")
        yield f"epoch settled={settled}", after, going_on if settled else Hydration("parked")
    elif hydration.at == "begin":
        args = [run_id(world.run), *(word for pair in needed for word in pair)]
        after, reply = protocol.eval(world, "hydrate_begin", 0, args)
        if not reply:
            yield "hydrate begin: warm", after, IDLE
            return
        gen, _, open_holds, fields = reply
        begun = Hydration(
            "snapshot" if early else "epoch",
            run_id(world.run),
            int(gen),
            tuple(fields),
            tuple(open_holds),
        )
        yield f"hydrate begin open={list(open_holds)}", after, begun
    elif hydration.at == "snapshot":
        args = []
        for scope, label in protocol.wanted(world.now_us, needed, hydration.fields):
            args += [scope, label, protocol.spent(world, scope, hydration.args)]
        yield (
            f"hydrate snapshot {args}",
            world,
            hydration._replace(at="end", args=tuple(args), fields=()),
        )
    elif hydration.at == "end":
        args = [hydration.run, hydration.gen, *hydration.args]
        after, done = protocol.eval(world, "hydrate_end", 0, args)
        yield f"hydrate end {bool(done)}", after, IDLE if done else Hydration("begin")


def bystander_steps(protocol: Protocol, world: World) -> Steps:
    """A third call's hydrate."""
    for label, after, hydration in hydrate(protocol, world, world.bystander, [("t", "total")]):
        yield f"bystander {label}", after._replace(bystander=hydration)


def sweeper_steps(protocol: Protocol, world: World, at: int) -> Steps:
    """One sweeper; it forgets that worker-local checks make it rarer than this."""
    sweep = world.sweeps[at]

    def moved(after: World, to: Sweep) -> World:
        return after._replace(sweeps=(*after.sweeps[:at], to, *after.sweeps[at + 1 :]))

    if sweep.at == "idle":
        for i in range(len(world.calls)):
            charge = protocol.lost_charge(world, i)
            if charge is not None:
                yield f"sweeper finds {rid(i)}", moved(world, Sweep("write", i, charge))
    elif sweep.at == "write":
        after, stored = protocol.write(world, sweep.call, sweep.amount)
        yield (
            f"sweeper row {rid(sweep.call)} {stored}",
            moved(after, Sweep("settle", sweep.call, stored)),
        )
    else:
        after = protocol.settle(world, sweep.call, sweep.amount)
        yield f"sweeper settle {rid(sweep.call)}", moved(after, Sweep())
        if "sweeper" in protocol.scenario.faults and world.faults:
            # A worker that has asked the ledger by now will not ask again.
            call = world.calls[sweep.call]
            unseen = not call.gap and "late" not in protocol.scenario.rules_dropped
            dead = moved(world, Sweep())._replace(faults=world.faults - 1, unseen=unseen)
            yield "SWEEPER KILLED", dead
