"""The line in front of the backends: bounded, fair, and without a trace of those who left."""

from __future__ import annotations

from collections import Counter

import pytest
import trio
import trio.testing
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from trio_gateway.core.errors import Overloaded, UpstreamUnavailable
from trio_gateway.services.backends import Backends
from trio_gateway.services.slots import Slots, Waiter

A, B = "http://a:1", "http://b:1"
SHARES = {"one": 1, "two": 2, "three": 3}
tenants = st.sampled_from(sorted(SHARES))
candidates = st.sampled_from([(A,), (B,), (A, B)])
priorities = st.sampled_from(["live", "batch"])


class Model(RuleBasedStateMachine):
    """Calls arrive, end, leave the line; backends fail and recover; time passes."""

    def __init__(self):
        super().__init__()
        self.now = 0.0
        self.slots = Slots([A, B], 2)
        self.line = []
        self.running = []

    def grant(self):
        for waiter in self.slots.grant(self.now):
            assert waiter.backend in waiter.candidates
            before = [w for w in self.line if w.tenant == waiter.tenant]
            same = [w for w in before if w.candidates == waiter.candidates]
            assert [w for w in same if w.priority == waiter.priority][0] is waiter  # noqa: RUF015
            self.line.remove(waiter)
            self.running.append(waiter)

    @rule(tenant=tenants, candidates=candidates, priority=priorities)
    def arrive(self, tenant, candidates, priority):
        waiter = Waiter(tenant, SHARES[tenant], candidates, priority)
        self.line.append(waiter)
        self.slots.join(waiter)
        self.grant()

    @rule(data=st.data())
    def end(self, data):
        if self.running:
            waiter = self.running.pop(data.draw(st.integers(0, len(self.running) - 1)))
            self.slots.release(waiter.backend)
            self.grant()

    @rule(data=st.data())
    def cancel(self, data):
        if self.line:
            waiter = self.line.pop(data.draw(st.integers(0, len(self.line) - 1)))
            assert self.slots.leave(waiter)
            assert not self.slots.leave(waiter)

    @rule(backend=st.sampled_from([A, B]), ok=st.booleans())
    def report(self, backend, ok):
        self.slots.report(backend, self.now, ok=ok)
        self.grant()

    @rule(seconds=st.sampled_from([0.1, 1, 10]))
    def wait(self, seconds):
        self.now += seconds
        self.grant()

    @invariant()
    def never_more_than_the_slots(self):
        on = Counter(waiter.backend for waiter in self.running)
        assert all(on[backend] + self.slots.free(backend) == 2 for backend in (A, B))
        assert all(self.slots.free(backend) >= 0 for backend in (A, B))
        assert self.slots.in_flight == len(self.running)

    @invariant()
    def nobody_waits_for_a_slot_that_is_free(self):
        assert self.slots.waiting == len(self.line)
        assert all(self.slots.place(w.candidates, self.now) is None for w in self.line)

    def teardown(self):
        for waiter in self.line:
            self.slots.leave(waiter)
        for waiter in self.running:
            self.slots.release(waiter.backend)
        assert (self.slots.waiting, self.slots.in_flight) == (0, 0)
        assert list(self.slots.grant(self.now)) == []


test_the_line_keeps_its_promises_whatever_happens = Model.TestCase


@given(
    st.lists(st.tuples(tenants, candidates), max_size=60),
    st.lists(st.sampled_from([A, B]), max_size=80),
)
def test_no_tenant_is_passed_more_than_each_share_once(arrivals, releases):
    """While a tenant waits for a backend, each other is given it at most `share` times."""
    fixed: dict[str, tuple[str, ...]] = {}
    slots = Slots([A, B], 1)
    for backend in (A, B):
        slots.occupy(backend)
    for tenant, choice in arrivals:  # each tenant keeps to one choice of backends
        slots.join(Waiter(tenant, SHARES[tenant], fixed.setdefault(tenant, choice)))
    waiting = Counter(tenant for tenant, _ in arrivals)
    passed: dict[str, Counter[str]] = {tenant: Counter() for tenant in SHARES}
    for backend in releases:
        slots.release(backend)
        granted = list(slots.grant(0))
        assert len(granted) <= 1
        for waiter in granted:
            waiting[waiter.tenant] -= 1
            passed[waiter.tenant].clear()
            for tenant in SHARES:
                if waiting[tenant] and tenant != waiter.tenant and backend in fixed[tenant]:
                    passed[tenant][waiter.tenant] += 1
                    assert passed[tenant][waiter.tenant] <= SHARES[waiter.tenant]
        if not granted:
            assert not any(waiting[t] and backend in fixed[t] for t in fixed)
            slots.occupy(backend)


def order_of(*arrivals):
    """Say in what order waiters of (tenant, share[, priority]) get the only slot."""
    slots = Slots([A], 1)
    slots.occupy(A)
    for tenant, share, *priority in arrivals:
        slots.join(Waiter(tenant, share, (A,), *priority))
    order = ""
    while slots.waiting:
        slots.release(A)
        order += "".join(waiter.tenant for waiter in slots.grant(0))
    return order


def test_slots_go_round_the_tenants_and_not_round_the_calls():
    """A tenant with many calls waiting does not delay one with few."""
    assert order_of(*[("a", 1)] * 5, ("b", 1), ("c", 1)) == "abcaaaa"


def test_a_tenant_with_a_larger_share_has_longer_turns():
    """Shares 3 to 1 give grants 3 to 1; a share below one is one."""
    assert order_of(*[("a", 3)] * 7, *[("b", 1)] * 3) == "aaabaaabab"
    assert order_of(*[("a", 0)] * 2, *[("b", 1)] * 2) == "abab"


def test_batch_calls_yield_to_live_ones():
    """A live call that comes last goes first."""
    assert order_of(("b", 1, "batch"), ("c", 1, "batch"), ("a", 1, "live"), ("a", 1)) == "aabc"


def test_the_emptiest_healthy_candidate_is_chosen():
    """Most free slots first, the first of equals; a resting one only when all rest."""
    slots = Slots([A, B], 2)
    assert slots.place((A, B), 0) == A
    slots.occupy(A)
    assert slots.place((A, B), 0) == B
    slots.report(B, 0, ok=False)
    assert slots.place((A, B), 0) == A
    assert slots.place((B,), 0) == B
    slots.occupy(A)
    assert slots.place((A, B), 0) is None  # waits for the healthy one
    slots.report(A, 0, ok=False)
    assert slots.place((A, B), 0) == B
    slots.report(A, 0.1, ok=True)
    slots.release(A)
    assert slots.place((A, B, "unknown"), 0) == A
    assert slots.place(("unknown",), 0) is None


def test_a_backend_that_goes_on_refusing_rests_longer_up_to_a_cap():
    """0.5, 1, 2, 4, 8, 8 seconds; failures of calls sent before the rest count once."""
    slots, now, rests = Slots([A, B], 1), 0.0, []
    for _ in range(6):
        slots.report(A, now, ok=False)
        slots.report(A, now, ok=False)
        rests.append((slots.recovery(now) or 0) - now)
        now += rests[-1]
        assert not slots.skipped(A, now)
    assert rests == [0.5, 1, 2, 4, 8, 8]
    slots.report(A, now, ok=True)
    assert slots.recovery(now) is None


def taken(backends):
    """Take a slot that is known to be free."""
    slot = backends.try_take([A])
    assert slot is not None
    return slot


async def test_a_slot_is_released_once():
    """Releasing it gives it back; releasing again gives nothing."""
    backends = Backends([A], 1, 4, 10)
    slot = taken(backends)
    assert (slot.backend, backends.in_flight) == (A, 1)
    assert backends.try_take([A]) is None
    slot.release()
    slot.release()
    assert (backends.in_flight, backends.free(A)) == (0, 1)
    await backends.take("t", 1, [A])
    assert backends.in_flight == 1


async def test_a_full_line_refuses_at_once_and_a_slow_one_in_time(autojump_clock):
    """Overloaded with Retry-After, immediately or after the queue timeout."""
    backends = Backends([A], 1, 1, 10)
    backends.try_take([A])
    async with trio.open_nursery() as nursery:

        async def wait():
            with pytest.raises(Overloaded) as caught:
                await backends.take("t", 1, [A])
            assert (trio.current_time() - began, caught.value.retry_after) == (10, 2)

        began = trio.current_time()
        nursery.start_soon(wait)
        await trio.testing.wait_all_tasks_blocked()
        with pytest.raises(Overloaded) as caught:
            await backends.take("u", 1, [A])
        assert (trio.current_time() - began, caught.value.retry_after) == (0, 2)
    assert (backends.waiting, backends.in_flight) == (0, 1)


async def test_without_a_known_backend_there_is_nothing_to_wait_for():
    """No candidates, or none of this installation: 503 at once."""
    backends = Backends([A], 1, 4, 10)
    for candidates in ([], ["http://elsewhere:1"]):
        assert backends.try_take(candidates) is None
        with pytest.raises(UpstreamUnavailable):
            await backends.take("t", 1, candidates)


async def test_nobody_jumps_the_line():
    """A slot that somebody in line has been given is not free for a newcomer."""
    backends = Backends([A], 1, 4, 10)
    first = taken(backends)
    got = []

    async def wait():
        got.append(await backends.take("t", 1, [A]))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(wait)
        await trio.testing.wait_all_tasks_blocked()
        first.release()
        assert backends.try_take([A]) is None
    assert [slot.backend for slot in got] == [A]


async def test_a_slot_given_to_a_call_that_was_just_cancelled_goes_to_the_next():
    """Granted and cancelled in one step: the slot is not lost."""
    backends = Backends([A], 1, 4, 10)
    first = taken(backends)
    got = []

    async def wait(name):
        with scopes[name]:
            slot = await backends.take(name, 1, [A])
            got.append(name)
            slot.release()

    scopes = {"a": trio.CancelScope(), "b": trio.CancelScope()}
    async with trio.open_nursery() as nursery:
        for name in scopes:
            nursery.start_soon(wait, name)
            await trio.testing.wait_all_tasks_blocked()
        scopes["a"].cancel()
        first.release()
    assert "b" in got
    assert (backends.waiting, backends.in_flight) == (0, 0)


async def test_a_rested_backend_takes_the_calls_that_wait(autojump_clock):
    """Nobody has to end for a waiting call to see that a backend may be tried again."""
    backends = Backends([A, B], 1, 4, 60)
    backends.try_take([A])
    backends.report(B, ok=False)
    assert not backends.healthy(B)
    began = trio.current_time()
    slot = await backends.take("t", 1, [A, B])
    assert slot.backend == B
    assert trio.current_time() - began == 0.5
    slot.release()
    backends.report(B, ok=True)
    assert backends.healthy(B)


calls = st.tuples(
    tenants,
    candidates,
    priorities,
    st.integers(0, 6),  # arrives at
    st.integers(1, 5),  # runs for
    st.one_of(st.none(), st.integers(0, 8)),  # cancelled after
)


@settings(max_examples=60)
@given(st.lists(calls, max_size=25))
def test_cancelled_calls_leave_no_trace(plan):
    """Calls come, wait, run and are cut anywhere: never too many at once, none left over."""

    async def one(backends, running, call):
        tenant, choice, priority, arrival, duration, limit = call
        await trio.sleep(arrival)
        with trio.move_on_after(1000 if limit is None else limit) as scope:
            slot = await backends.take(tenant, SHARES[tenant], choice, priority)
            running[slot.backend] += 1
            assert running[slot.backend] <= 2
            try:
                await trio.sleep(duration)
            finally:
                running[slot.backend] -= 1
                slot.release()
        assert scope.cancelled_caught or limit is None or limit >= duration

    async def main():
        backends = Backends([A, B], 2, 100, 500)
        running: Counter[str] = Counter()
        async with trio.open_nursery() as nursery:
            for call in plan:
                nursery.start_soon(one, backends, running, call)
        assert (backends.waiting, backends.in_flight) == (0, 0)
        assert running.total() == 0
        assert all(backends.try_take([b]) for b in (A, B) for _ in range(2))

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))
