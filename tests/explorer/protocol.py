"""The protocol's atomic steps: a script on Redis, or a statement on PostgreSQL."""

from __future__ import annotations

from datetime import UTC, datetime
from functools import cache
from typing import TYPE_CHECKING, Any

from tests.explorer.lua_world import LuaRedis
from tests.explorer.nouns import NONE, Hydration, World
from trio_gateway.core.domain import Basis, LedgerRow, Outcome
from trio_gateway.services.quota.holds import FINAL, encode_row, parse_found
from trio_gateway.services.quota.hydrate import _kind, _label
from trio_gateway.services.quota.keys import EPOCH, call_keys, tenant_keys
from trio_gateway.services.quota.sweep import lost_row

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from tests.explorer.nouns import Scenario

TENANT = "t1"
META, COUNT, HOLDS, LEASES, SUMS = tenant_keys(TENANT)
START_US = 1_700_000_000_000_000
LEASE_US = 15_000_000
EPOCH_WAIT_US = 2_000_000
TICK_US = LEASE_US + EPOCH_WAIT_US
WINDOW_US = 60_000_000_000  # no hit expires during a search
ESTIMATE = 1
Renumbered = tuple[int, int, tuple[int, ...]]
STALE, FIRST_GEN, FAR = 1, 100, 30


class Protocol:
    """Steps of one scenario over one set of scripts."""

    def __init__(self, scripts: Mapping[str, str], scenario: Scenario) -> None:
        self.redis = LuaRedis(scripts)
        self.scenario = scenario
        self.accounts: dict[tuple[int, int, tuple[int, ...]], str | None] = {}
        self._gens: dict[int, int | None] = {}
        self._canonical: dict[tuple[int, int, tuple[int, ...]], Renumbered] = {}

    def hydration(self) -> Hydration:
        """Return a hydrate that has not begun."""
        early = "epoch after begin" in self.scenario.rules_dropped
        return Hydration("epoch" if early else "begin")

    def eval(self, world: World, name: str, i: int, args: Sequence[Any]) -> tuple[World, Any]:
        keys = call_keys(TENANT, self.scenario.calls[i].key)
        state, reply = self.redis.script(world.redis, world.now_us, name, keys, args)
        return world._replace(redis=state), reply

    def reserve(self, world: World, i: int) -> tuple[World, Any]:
        plan = self.scenario.calls[i]
        phase = "queued" if plan.queued else "dispatched"
        call = [run_id(world.run), rid(i), plan.key, ESTIMATE, plan.ask, 1, 1000, LEASE_US, phase]
        limits = [-1, 1000, self.scenario.budget, "total", -1, -1, plan.key_budget, "day"]
        return self.eval(world, "reserve", i, [*call, 10, WINDOW_US, OPAQUE, *limits])

    def renew(self, world: World, i: int, phase: str) -> tuple[World, bool]:
        call = world.calls[i]
        final = _final(i, call.charge, call.text) if phase == FINAL else ""
        world, back = self.eval(
            world, "renew", i, [LEASE_US, rid(i), phase, 0, 0, 0, final, call.text]
        )
        return world.with_call(i, phase=phase), bool(back)

    def settle(self, world: World, i: int, charged: int) -> World:
        return self.eval(world, "settle", i, [rid(i), charged])[0]

    def write(self, world: World, i: int, charged: int) -> tuple[World, int]:
        """Append a row with its sums; the first writer wins. Return what is stored."""
        if world.rows[i] == NONE:
            world = world._replace(rows=(*world.rows[:i], charged, *world.rows[i + 1 :]))
        return world, world.rows[i]

    def epoch_settled(self, world: World) -> tuple[World, bool]:
        state, (since, now) = self.redis.script(
            world.redis, world.now_us, "epoch", [EPOCH], [run_id(world.run)]
        )
        return world._replace(redis=state), since + EPOCH_WAIT_US <= now

    def in_scope(self, scope: str) -> list[str]:
        """Name the calls that count in a scope."""
        return [
            rid(i) for i, plan in enumerate(self.scenario.calls) if scope in ("t", f"k:{plan.key}")
        ]

    def spent(self, world: World, scope: str, left_out: Sequence[str | int]) -> int:
        """Sum the rows of a scope, but for those of open holds."""
        counted = self.in_scope(scope)
        return sum(
            charged
            for i, charged in enumerate(world.rows)
            if charged != NONE and rid(i) in counted and rid(i) not in left_out
        )

    def holds(self, world: World) -> dict[str, str]:
        found: dict[str, str] = self.redis.view(world.redis).get(HOLDS, {})
        return found

    def lease(self, world: World, i: int) -> str:
        return str(self.redis.view(world.redis).get(LEASES, {}).get(rid(i), ""))

    def lost_charge(self, world: World, i: int) -> int | None:
        """Return what a sweeper would charge for this hold; None where the lease still runs."""
        text = self.holds(world).get(rid(i))
        return None if text is None else _lost(i, text, self.lease(world, i), world.now_us)

    def is_warm(self, world: World) -> bool:
        meta = self.redis.view(world.redis).get(META, {})
        return bool(meta.get("warm") == run_id(world.run))

    def wanted(
        self, now_us: int, needed: Any, fields: Sequence[str]
    ) -> dict[tuple[str, str], None]:
        """Choose counters as the hydrate does: those needed, and those in use that are of today."""
        today = datetime.fromtimestamp(now_us / 1_000_000, UTC).date()
        wanted = {(scope, _label(kind, today)): None for scope, kind in needed}
        for name in fields:
            scope, label = name[2:].rsplit("|", 1)
            if label == _label(_kind(label), today):
                wanted[(scope, label)] = None
        return wanted

    def canonical(self, world: World) -> World:
        """Make generations small, keeping their order and every difference that can matter."""
        if len(world.sweeps) > 1 and world.sweeps[0] > world.sweeps[1]:
            world = world._replace(sweeps=tuple(sorted(world.sweeps)))
        gens = (*(call.hydration.gen for call in world.calls), world.bystander.gen)
        given = (world.redis, world.snapshot, gens)
        if given not in self._canonical:
            self._canonical[given] = self._renumbered(*given)
        redis, snapshot, small = self._canonical[given]
        if small != gens:
            for i, call in enumerate(world.calls):
                world = world.with_call(i, hydration=call.hydration._replace(gen=small[i]))
            world = world._replace(bystander=world.bystander._replace(gen=small[-1]))
        if redis != world.redis or snapshot != world.snapshot:
            world = world._replace(redis=redis, snapshot=snapshot)
        return world

    def _renumbered(self, redis: int, snapshot: int, gens: tuple[int, ...]) -> Renumbered:
        stored = [self._gen(state) for state in (redis, snapshot) if state >= 0]
        known = {gen for gen in stored if gen is not None}
        # A generation below every stored one never comes back: all of those are alike.
        known |= {gen for gen in gens if known and gen >= min(known)}
        small = {NONE: NONE}
        last, at = 0, FIRST_GEN - FAR
        for gen in sorted(known):
            at += min(gen - last, FAR)
            small[gen], last = at, gen
        return (
            self._with_gen(redis, small),
            self._with_gen(snapshot, small),
            tuple(small.get(gen, STALE) for gen in gens),
        )

    def _gen(self, state: int) -> int | None:
        if state not in self._gens:
            gen = self.redis.view(state).get(META, {}).get("gen")
            self._gens[state] = None if gen is None else int(gen)
        return self._gens[state]

    def _with_gen(self, state: int, small: Mapping[int, int]) -> int:
        gen = self._gen(state) if state >= 0 else None
        if gen is None or small[gen] == gen:
            return state
        return self.redis.replaced(state, META, "gen", str(small[gen]))


RIDS = ("c1", "c2", "c3")


def rid(i: int) -> str:
    return RIDS[i]


def run_id(run: int) -> str:
    return f"run{run}"


def cost_of(text: str) -> int:
    return int(text.split("|", 3)[2])


OPAQUE = '{"endpoint": "/api/chat", "model": "m", "estimate": 1, "milli": 1000}'


def row(i: int, charged: int, text: str) -> LedgerRow:
    """Make the row that a call's own worker writes."""
    return LedgerRow(
        request_id=rid(i),
        tenant_id=TENANT,
        key_id="",
        endpoint="/api/chat",
        model="m",
        status_code=200,
        outcome=Outcome.COMPLETED,
        basis=Basis.FINAL,
        prompt_tokens=0,
        completion_tokens=0,
        charged_tokens=charged,
        held_tokens=cost_of(text),
        backend=None,
        started_us=int(text.split("|", 1)[0]),
        ttft_ms=None,
        duration_ms=0.0,
        batch_id=None,
    )


@cache
def _final(i: int, charged: int, text: str) -> str:
    return encode_row(row(i, charged, text))


@cache
def _lost(i: int, text: str, lease: str, now_us: int) -> int | None:
    found = parse_found(TENANT, rid(i), text, lease)
    return None if found.lease_until_us >= now_us else lost_row(found).charged_tokens
