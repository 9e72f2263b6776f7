"""Any order of calls, crashes, sweeps and losses of Redis leaves the account exact.

Two workers share real stores. After every step the counters of a warm tenant must equal what
the ledger and the open holds say, and the budget must not be overspent; at the end every call
has one row, but for those of which Redis and the worker were lost together.
"""

from __future__ import annotations

import queue
import threading
import uuid
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest
import trio
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from tests.account import Worker, ask, caller, one_database, open_worker, row_of
from trio_gateway.core.domain import Limits, Period
from trio_gateway.core.errors import BudgetExhausted, StoreUnavailable
from trio_gateway.pipeline.verify import verify
from trio_gateway.services.quota.keys import tenant_keys
from trio_gateway.services.quota.sweep import Sweeper

if TYPE_CHECKING:
    from collections.abc import Iterator

    from trio_gateway.core.domain import Principal
    from trio_gateway.services.quota.holds import Hold

LIMIT = 60.0  # seconds for one step
TOGETHER = 7200.0  # seconds for all

DAY_US = 86_400_000_000

pick = st.integers(0, 1_000)


@dataclass
class Ongoing:
    """A call that was admitted and has not been settled by its worker."""

    hold: Hold
    worker: int


class Stage:
    """Two workers in a thread of their own, which plain code can direct."""

    def __init__(self, database_url: str, redis_url: str) -> None:
        self._ready: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._thread = threading.Thread(
            target=trio.run, args=(self._run, database_url, redis_url), daemon=True
        )
        self._thread.start()
        self._token, self._stop, self.workers = self._ready.get(timeout=120)

    async def _run(self, database_url: str, redis_url: str) -> None:
        async with (
            open_worker(database_url, redis_url, limit=TOGETHER) as first,
            open_worker(database_url, redis_url, limit=TOGETHER) as second,
        ):
            stop = trio.Event()
            self._ready.put((trio.lowlevel.current_trio_token(), stop, (first, second)))
            await stop.wait()

    def do(self, act: Any, *args: Any) -> Any:
        """Run an async function to its end."""

        async def limited() -> Any:
            with trio.fail_after(LIMIT):
                return await act(*args)

        return trio.from_thread.run(limited, trio_token=self._token)

    def close(self) -> None:
        """Stop the workers."""
        trio.from_thread.run_sync(self._stop.set, trio_token=self._token)
        self._thread.join(20)


class Settlement(RuleBasedStateMachine):
    """One tenant with two keys; `stage` is set by the test."""

    stage: Stage

    def __init__(self) -> None:
        super().__init__()
        self.ongoing: list[Ongoing] = []
        self.crashed: list[Hold] = []
        self.admitted: dict[str, Hold] = {}
        self.vanished: set[str] = set()
        self.overcharged = 0
        self.young = False
        self.remembered: list[tuple[str, bytes]] = []

    def worker(self, number: int) -> Worker:
        found: Worker = self.stage.workers[number % 2]
        return found

    @property
    def any_worker(self) -> Worker:
        return self.worker(0)

    @initialize(
        tenant=st.none() | st.integers(100, 900),
        first=st.none() | st.integers(50, 600),
        second=st.none() | st.integers(0, 600),
        periods=st.tuples(*[st.sampled_from(list(Period))] * 3),
    )
    def open_books(
        self, tenant: int | None, first: int | None, second: int | None, periods: tuple[Period, ...]
    ) -> None:
        limits = [
            Limits(budget=units, budget_period=period)
            for units, period in zip((tenant, first, second), periods, strict=True)
        ]
        one = caller(limits[0], limits[1])
        self.principals: list[Principal] = [
            one,
            caller(limits[0], limits[2], tenant_id=one.tenant.id),
        ]
        self.stage.do(self._forget_everything)
        self.day = self._today()

    def _today(self) -> int:
        """Number the day by Redis, whose clock decides on periods."""
        return int(self.stage.do(self.any_worker.now_us)) // DAY_US

    def _midnight_came(self, limits: Limits) -> bool:
        """Whether a budget may have begun anew since the books were opened."""
        return limits.budget_period is not Period.TOTAL and self._today() != self.day

    async def _forget_everything(self) -> None:
        for worker in self.stage.workers:
            worker.quota.live.clear()
            worker.quota.forget_announcements()
        await self.any_worker.redis.command("FLUSHALL")
        await self.any_worker.age()

    # -- calls

    @rule(
        wishes=st.lists(
            st.tuples(
                st.integers(0, 3),  # whose key, and which worker
                st.integers(0, 20),  # prompt
                st.integers(0, 40),  # output
                st.sampled_from([1000, 500, 2500, 333]),
            ),
            min_size=1,
            max_size=3,
        ),
        dispatched=st.booleans(),
    )
    def reserve(self, wishes: list[tuple[int, int, int, int]], *, dispatched: bool) -> None:
        for who, prompt, output, milli in wishes:
            principal = self.principals[who % 2]
            wanted = ask(principal, prompt, output, milli=milli, dispatched=dispatched)
            try:
                hold, standing = self.stage.do(self.worker(who // 2).quota.reserve, wanted)
            except BudgetExhausted:
                continue
            except StoreUnavailable:
                assert self.young, "refused although Redis had been up for long"
                return
            assert standing.budget is None or standing.budget.remaining >= 0
            self.admitted[hold.request_id] = hold
            self.ongoing.append(Ongoing(hold, who // 2))

    @precondition(lambda self: self.ongoing)
    @rule(which=pick)
    def dispatch(self, which: int) -> None:
        call = self.ongoing[which % len(self.ongoing)]
        try:
            self.stage.do(self.worker(call.worker).quota.mark_dispatched, call.hold, "b")
        except StoreUnavailable:  # its hold was gone: the call is refused
            self._end(call, 0)

    @precondition(lambda self: self.ongoing)
    @rule(which=pick, more=st.integers(1, 30))
    def progress(self, which: int, more: int) -> None:
        hold = self.ongoing[which % len(self.ongoing)].hold
        hold.output = min(hold.output + more, hold.ceiling)

    @precondition(lambda self: self.ongoing)
    @rule(which=pick, share=st.integers(0, 100), error=st.sampled_from([0, 0, 0, 7]))
    def settle(self, which: int, share: int, error: int) -> None:
        call = self.ongoing[which % len(self.ongoing)]
        self._end(call, call.hold.cost * share // 100 + error)

    def _end(self, call: Ongoing, charged: int) -> None:
        self.ongoing.remove(call)
        self.overcharged += max(0, charged - call.hold.cost)
        self.stage.do(self.worker(call.worker).end, call.hold, charged)

    # -- faults

    @precondition(lambda self: self.ongoing)
    @rule(which=pick)
    def crash(self, which: int) -> None:
        call = self.ongoing.pop(which % len(self.ongoing))
        self.worker(call.worker).quota.live.pop(call.hold.request_id, None)
        self.crashed.append(call.hold)
        self._see_who_vanished()

    @precondition(lambda self: self.ongoing)
    @rule(which=pick, share=st.integers(0, 100))
    def crash_between_row_and_settle(self, which: int, share: int) -> None:
        hold = self.ongoing[which % len(self.ongoing)].hold
        if hold.request_id not in self.stage.do(self.any_worker.holds, self.principals[0]):
            # Not closable: Redis lost its data, this worker stood still until others were admitted
            # again, and now it dies between a row and a settle that would have been noticed.
            return
        row = row_of(hold, hold.cost * share // 100)
        self.stage.do(self.any_worker.ledger.write, [row])
        self.crash(which)

    @precondition(lambda self: self.ongoing)
    @rule(which=pick)
    def stand_still(self, which: int) -> None:
        """A worker pauses: the lease of a call ends while the call goes on."""
        self.stage.do(self._expire, [self.ongoing[which % len(self.ongoing)].hold])

    async def _expire(self, holds: list[Hold]) -> None:
        redis = self.any_worker.redis
        leases = tenant_keys(self.principals[0].tenant.id)[3]
        for hold in holds:
            lease = await redis.command("HGET", leases, hold.request_id)
            if lease is not None:
                fields = lease.split(b"|", 5)
                fields[2] = b"0"
                await redis.command("HSET", leases, hold.request_id, b"|".join(fields))

    @rule(worker=pick)
    def sweep(self, worker: int) -> None:
        self.stage.do(self._expire, self.crashed)
        self.stage.do(self._sweep, self.worker(worker))

    async def _sweep(self, worker: Worker) -> None:
        # A lease of no time at all: the second look is for clocks that step, which none does here.
        sweeper = Sweeper(worker.redis, worker.quota, worker.ledger, interval=1, lease=0, renewal=1)
        await sweeper.sweep(scan=True)

    @rule(worker=pick)
    def beat(self, worker: int) -> None:
        self.stage.do(self.worker(worker).renewals.beat)
        # A call whose account was closed by a sweeper is cut.
        live = [live.quota.live for live in self.stage.workers]
        for call in list(self.ongoing):
            if call.hold.request_id not in live[call.worker]:
                self._end(call, 0)

    @rule(worker=pick)
    def count_anew(self, worker: int) -> None:
        tenant_id = self.principals[0].tenant.id
        try:
            self.stage.do(self.worker(worker).hydrator.warm, tenant_id, [("t", "total")])
        except StoreUnavailable:
            assert self.young, "refused although Redis had been up for long"

    @rule(wait=st.booleans(), late=st.sampled_from([None, None, 0, 1]))
    def lose_everything(self, late: int | None, *, wait: bool) -> None:
        self.stage.do(self.any_worker.redis.command, "FLUSHALL")
        self._begin_anew(late, wait=wait)

    def _begin_anew(self, late: int | None, *, wait: bool) -> None:
        self.young = True
        self._see_who_vanished()
        if wait:
            self.an_interval_passes(late)

    @rule()
    def remember(self) -> None:
        self.stage.do(self._remember)

    async def _remember(self) -> None:
        redis = self.any_worker.redis
        self.remembered = []
        for name in tenant_keys(self.principals[0].tenant.id):
            dump = await redis.command("DUMP", name)
            if dump is not None:
                self.remembered.append((name, dump))

    @rule(wait=st.booleans(), late=st.sampled_from([None, None, 0, 1]))
    def fail_over(self, late: int | None, *, wait: bool) -> None:
        """Another server takes over, with what it had heard of by then."""
        self.stage.do(self._fail_over)
        self._begin_anew(late, wait=wait)

    async def _fail_over(self) -> None:
        run_id = uuid.uuid4().hex + "0" * 8
        for worker in self.stage.workers:
            worker.redis.run_id = run_id
        redis = self.any_worker.redis
        await redis.command("DEL", *tenant_keys(self.principals[0].tenant.id))
        for name, dump in self.remembered:
            await redis.command("RESTORE", name, 0, dump)

    @precondition(lambda self: self.young)
    @rule(late=st.sampled_from([None, None, 0, 1]))
    def an_interval_passes(self, late: int | None = None) -> None:
        """Every worker renews, but one that stands still; then Redis has been up long enough."""
        for worker in (0, 1):
            if worker != late:
                self.beat(worker)
        self.stage.do(self.any_worker.age)
        self.young = False
        # What a worker that stands still has under way is not counted until it goes on.
        self.overcharged += sum(call.hold.cost for call in self.ongoing if call.worker == late)

    def _see_who_vanished(self) -> None:
        """Find calls lost for good: their worker is dead, Redis lost them, and there is no row."""
        self.vanished |= self.stage.do(self._lost_for_good)

    async def _lost_for_good(self) -> set[str]:
        worker = self.any_worker
        dead = {hold.request_id for hold in self.crashed}
        rows = set(await worker.ledger.find(sorted(dead)))
        return dead - rows - await worker.holds(self.principals[0])

    # -- what must hold

    @invariant()
    def counters_equal_the_books(self) -> None:
        if hasattr(self, "principals"):
            found = self.stage.do(self._compare)
            assert found["differences"] == []

    async def _compare(self) -> dict[str, Any]:
        return await verify(self.any_worker.postgres, self.any_worker.redis)

    @invariant()
    def no_budget_is_overspent(self) -> None:
        if not hasattr(self, "principals"):
            return
        rows = self.stage.do(self.any_worker.rows, self.principals[0])
        closed = {row["request_id"] for row in rows}
        assert len(closed) == len(rows)
        for at, principal in enumerate(self.principals):
            for limits, key_id in (
                (principal.key.limits, principal.key.id),
                *([(principal.tenant.limits, None)] if at == 0 else []),
            ):
                spent = sum(
                    row["charged_tokens"] for row in rows if key_id in (None, row["key_id"])
                )
                held = sum(
                    hold.cost
                    for hold in self.admitted.values()
                    if hold.request_id not in closed | self.vanished
                    and key_id in (None, hold.key_id)
                )
                if limits.budget is not None:
                    fits = spent + held <= limits.budget + self.overcharged
                    assert fits or self._midnight_came(limits)

    def teardown(self) -> None:
        """Everybody ends, the dead are swept: nothing is left open, nothing is missing."""
        if not hasattr(self, "principals"):
            return
        for call in list(self.ongoing):
            self._end(call, 1)
            self.overcharged += 1
        for worker in (0, 1):
            self.beat(worker)
        self.stage.do(self._close)
        rows = self.stage.do(self.any_worker.rows, self.principals[0])
        assert {row["request_id"] for row in rows} == set(self.admitted) - self.vanished
        found = self.stage.do(self._compare)
        assert (found["differences"], found["holds_open"]) == ([], 0)

    async def _close(self) -> None:
        worker = self.any_worker
        await worker.age()
        # A server that was rolled back may have brought holds of calls that had long been settled.
        await self._expire(list(self.admitted.values()))
        await self._sweep(worker)
        needed = [(f"k:{principal.key.id}", "total") for principal in self.principals]
        await worker.hydrator.warm(self.principals[0].tenant.id, [("t", "total"), *needed])


@pytest.fixture
def stage(stores: Any, redis_url: str) -> Iterator[Stage]:
    with one_database(stores) as database_url:
        opened = Stage(database_url, redis_url)
        try:
            yield opened
        finally:
            opened.close()


def test_the_account_survives_any_order_of_events(stage: Stage) -> None:
    """Spent and held never exceed the budget, counters equal the ledger, every call has one row."""

    class Machine(Settlement):
        pass

    Machine.stage = stage
    run_state_machine_as_test(
        Machine,
        settings=settings(
            max_examples=60,
            stateful_step_count=40,
            derandomize=True,
            phases=[Phase.generate],  # shrinking takes minutes: ask for it when there is a failure
            database=None,
            deadline=None,
            suppress_health_check=list(HealthCheck),
            print_blob=False,
        ),
    )
