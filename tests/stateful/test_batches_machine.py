"""Any order of workers, crashes, cancels and clocks: every batch goes its one legal way.

The services run over a real PostgreSQL; leases that ran out leave their holders behind, which go
on as if nothing had happened. After every step each batch may have moved along one legal edge
only, its times stand and are in order, and its counts are those of its lines; at the end all end.
"""

from __future__ import annotations

import itertools
import queue
import threading
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from uuid import UUID, uuid4

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

from tests.account import caller, one_database
from trio_gateway.clients.bridge import open_bridge
from trio_gateway.clients.postgres import Postgres, open_postgres
from trio_gateway.core.batches import TERMINAL, Batch, Line, LineError, Status, Wanted
from trio_gateway.core.errors import Conflict
from trio_gateway.services.batches.book import BatchBook
from trio_gateway.services.batches.ending import Ended, Endings, FencedOutError, end
from trio_gateway.services.batches.intake import Intake
from trio_gateway.services.batches.lines import Claim, Lines, Result
from trio_gateway.services.batches.turns import Turns

if TYPE_CHECKING:
    from collections.abc import Iterator

LIMIT = 20.0  # seconds for one step
LEASE = 600.0  # seconds: leases end by hand only
MOST_UNDER_WAY = 2  # batches of one tenant
ATTEMPTS = 3
TENANTS = ("acme", "other")
FILE, NO_FILE = "file-there", "file-nowhere"
MODELS = ("m1", "m2")
EACH_IN, EACH_OUT = 2, 3  # tokens of every result

EDGES = {
    "validating": {"in_progress", "failed", "cancelling", "expired"},
    "in_progress": {"finalizing", "cancelling", "expired", "failed"},
    "finalizing": {"completed", "cancelling", "failed"},
    "cancelling": {"cancelled"},
}
# Which times must be there, and which may be there as well.
TIMES = {
    "validating": (set(), set()),
    "in_progress": ({"in_progress_at"}, set()),
    "finalizing": ({"in_progress_at", "finalizing_at"}, set()),
    "completed": ({"in_progress_at", "finalizing_at", "completed_at"}, set()),
    "failed": ({"failed_at"}, {"in_progress_at"}),
    "expired": ({"expired_at"}, {"in_progress_at"}),
    "cancelling": ({"cancelling_at"}, {"in_progress_at", "finalizing_at"}),
    "cancelled": ({"cancelling_at", "cancelled_at"}, {"in_progress_at", "finalizing_at"}),
}
ORDER = (
    "created_at",
    "in_progress_at",
    "finalizing_at",
    "completed_at",
    "failed_at",
    "expired_at",
    "cancelling_at",
    "cancelled_at",
)
BATCHES = f"""
SELECT id, status, {", ".join(ORDER)}, errors, total, completed, failed, input_tokens,
    output_tokens, output_file_id, error_file_id, lease_token FROM gateway.batches
"""
LINES = "SELECT batch_id, line, custom_id, state, request_id, attempts FROM gateway.batch_lines"
LEASES_END = """
UPDATE gateway.batches SET lease_until = now() - interval '1 s' WHERE lease_token IS NOT NULL
"""
LINES_COME_FREE = """
UPDATE gateway.batch_lines SET lease_until = now() - interval '1 s' WHERE state = 'leased'
"""
WINDOW_ENDS = "UPDATE gateway.batches SET expires_at = now() WHERE id = $1"

pick = st.integers(0, 1_000)


@dataclass
class Validator:
    """A worker that validates, or thinks that it does."""

    batch: Batch
    token: UUID
    purpose: str | None
    lines: list[Line] = field(default_factory=list)


@dataclass
class Finisher:
    """A worker that ends a batch, or thinks that it does."""

    batch: Batch
    token: UUID


class Stage:
    """The services in a thread of their own, which plain code can direct."""

    def __init__(self, database_url: str) -> None:
        self._ready: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._thread = threading.Thread(
            target=trio.run, args=(self._run, database_url), daemon=True
        )
        self._thread.start()
        self.postgres: Postgres
        self._token, self._stop, self.postgres = self._ready.get(timeout=30)
        self.book = BatchBook(self.postgres)
        self.intake = Intake(self.postgres)
        self.lines = Lines(self.postgres, LEASE, ATTEMPTS)
        self.endings = Endings(self.postgres, LEASE)
        for name in TENANTS:
            self.rows("INSERT INTO gateway.tenants (id, name) VALUES ($1, $1)", name)
            self.rows(
                "INSERT INTO gateway.api_keys (id, tenant_id, public_id, hash)"
                " VALUES ('key_' || $1, $1, $1, '')",
                name,
            )
            self.rows(
                "INSERT INTO gateway.files (id, tenant_id, purpose, filename, bytes, blob)"
                " VALUES ($1 || $2, $2, 'batch', 'a.jsonl', 1, 'files/' || $2)",
                FILE,
                name,
            )

    async def _run(self, database_url: str) -> None:
        async with open_bridge() as bridge, open_postgres(bridge, database_url, size=2) as opened:
            stop = trio.Event()
            self._ready.put((trio.lowlevel.current_trio_token(), stop, opened))
            await stop.wait()

    def do(self, act: Any, *args: Any) -> Any:
        """Run an async function to its end."""

        async def limited() -> Any:
            with trio.fail_after(LIMIT):
                return await act(*args)

        return trio.from_thread.run(limited, trio_token=self._token)

    def rows(self, query: str, *args: Any) -> list[dict[str, Any]]:
        """Return the rows of a query."""
        return [dict(row) for row in self.do(self.postgres.fetch, query, *args)]

    def close(self) -> None:
        """Stop."""
        trio.from_thread.run_sync(self._stop.set, trio_token=self._token)
        self._thread.join(20)


class BatchMachine(RuleBasedStateMachine):
    """Two tenants' batches, and any number of workers; `stage` is set by the test."""

    stage: Stage

    def __init__(self) -> None:
        super().__init__()
        self.validators: list[Validator] = []
        self.claims: list[Claim] = []
        self.finishers: list[Finisher] = []
        self.turns = Turns(lambda _: ("one",))
        self.numbers = itertools.count(1)
        self.batches: dict[str, dict[str, Any]] = {}
        self.lines: dict[tuple[str, int], dict[str, Any]] = {}

    @initialize()
    def begin_anew(self) -> None:
        self.stage.rows("DELETE FROM gateway.batches")
        self.stage.rows("DELETE FROM gateway.doomed_blobs")

    def some(self, *statuses: str) -> list[str]:
        """Return the batches in one of the statuses, in all of them without any named."""
        return [
            batch_id
            for batch_id, row in self.batches.items()
            if not statuses or row["status"] in statuses
        ]

    # -- callers

    @precondition(lambda self: len(self.batches) < 6)
    @rule(tenant=st.sampled_from(TENANTS), there=st.sampled_from([True, True, True, False]))
    def create(self, tenant: str, *, there: bool) -> None:
        principal = caller(tenant_id=tenant, key_id=f"key_{tenant}")
        wanted = Wanted(f"{FILE if there else NO_FILE}{tenant}", "/v1/chat/completions")
        made, replayed = self.stage.do(self.stage.book.create, principal, wanted)
        assert (made.status, replayed) == (Status.VALIDATING, False)

    @precondition(lambda self: self.batches)
    @rule(which=pick)
    def cancel(self, which: int) -> None:
        batch_id = self._nth(self.some(), which)
        before = self.batches[batch_id]["status"]
        row = self.stage.rows("SELECT tenant_id FROM gateway.batches WHERE id = $1", batch_id)[0]
        try:
            found = self.stage.do(self.stage.book.cancel, row["tenant_id"], batch_id)
        except Conflict:
            assert before in {"completed", "failed", "expired"}
        else:
            assert found.status in {Status.CANCELLING, Status.CANCELLED}
            assert before not in {"completed", "failed", "expired"}

    # -- clocks

    @precondition(lambda self: self.some("validating", "in_progress"))
    @rule(which=pick)
    def window_ends(self, which: int) -> None:
        batch_id = self._nth(self.some("validating", "in_progress"), which)
        self.stage.rows(WINDOW_ENDS, batch_id)

    @precondition(lambda self: self.validators or self.finishers)
    @rule()
    def leases_of_batches_end(self) -> None:
        """Who holds them dies, or stands still."""
        self.stage.rows(LEASES_END)

    @precondition(lambda self: self.claims)
    @rule()
    def leases_of_lines_end(self) -> None:
        self.stage.rows(LINES_COME_FREE)

    # -- validation

    @precondition(lambda self: self.some("validating"))
    @rule()
    def take_in(self) -> None:
        token = uuid4()
        claimed = self.stage.do(self.stage.intake.claim, token, LEASE, MOST_UNDER_WAY)
        if claimed is not None:
            self.validators.append(Validator(claimed[0], token, claimed[1]))

    @precondition(lambda self: self.validators)
    @rule(which=pick, models=st.lists(st.sampled_from(MODELS), min_size=1, max_size=4))
    def add_lines(self, which: int, models: list[str]) -> None:
        validator = self._nth(self.validators, which)
        first = len(validator.lines) + 1
        more = [
            Line(number, f"c{number}", model, number * 100, 100)
            for number, model in enumerate(models, first)
        ]
        added = self.stage.do(
            self.stage.intake.add_lines, validator.batch.id, validator.token, more
        )
        assert added is self._holds(validator)
        if added:
            validator.lines += more

    @precondition(lambda self: any(each.lines for each in self.validators))
    @rule(which=pick)
    def start(self, which: int) -> None:
        validator = self._nth([each for each in self.validators if each.lines], which)
        models = sorted({line.model for line in validator.lines})
        total = len(validator.lines)
        began = self.stage.do(
            self.stage.intake.begin, validator.batch.id, validator.token, total, models
        )
        assert began is self._holds(validator)

    @precondition(lambda self: self.validators)
    @rule(which=pick)
    def fail(self, which: int) -> None:
        validator = self._nth(self.validators, which)
        errors = [LineError("invalid_json_line", "no", None, 1)]
        failed = self.stage.do(self.stage.intake.fail, validator.batch.id, validator.token, errors)
        assert failed is self._holds(validator)

    @precondition(lambda self: self.validators)
    @rule(which=pick)
    def drop(self, which: int) -> None:
        validator = self._nth(self.validators, which)
        self.stage.do(self.stage.intake.drop, validator.batch.id, validator.token)

    def _holds(self, validator: Validator) -> bool:
        row = self.batches[validator.batch.id]
        return bool(row["status"] == "validating" and row["lease_token"] == validator.token)

    # -- lines

    @precondition(lambda self: self.some("in_progress"))
    @rule(most=st.integers(1, 5))
    def claim(self, most: int) -> None:
        claimed = self.stage.do(self.stage.lines.claim, self.turns, most)
        if claimed is not None:
            assert self.batches[claimed.batch_id]["status"] == "in_progress"
            assert len(claimed.lines) <= most
            self.claims.append(claimed)

    @precondition(lambda self: self.claims)
    @rule(which=pick, part=st.integers(1, 5), succeeded=st.booleans())
    def record(self, which: int, part: int, *, succeeded: bool) -> None:
        claim = self._nth(self.claims, which)
        results = [
            Result(claim, line, succeeded, f"req_{next(self.numbers)}", b"text", EACH_IN, EACH_OUT)
            for line in claim.lines[:part]
        ]
        path = f"results/{claim.batch_id}/{next(self.numbers)}"
        counted = self.stage.do(self.stage.lines.record, claim.batch_id, path, results)
        said = {result.request_id for result in results}
        taken = [row for row in self.stage.rows(LINES) if row["request_id"] in said]
        assert counted == len(taken)

    @precondition(lambda self: self.claims)
    @rule(which=pick, part=st.integers(1, 5), failed=st.booleans())
    def release(self, which: int, part: int, *, failed: bool) -> None:
        claim = self._nth(self.claims, which)
        numbers = [line.number for line in claim.lines[:part]]
        self.stage.do(lambda: self.stage.lines.release(claim, numbers, failed=failed))

    @precondition(lambda self: self.claims)
    @rule(which=pick)
    def renew(self, which: int) -> None:
        claim = self._nth(self.claims, which)
        ours = self.stage.do(self.stage.lines.renew, [claim.token])
        assert ours <= {(claim.batch_id, line.number) for line in claim.lines}

    # -- the end

    @precondition(lambda self: self.batches)
    @rule()
    def begin_to_end(self) -> None:
        claimed = self.stage.do(self.stage.endings.claim)
        if claimed is not None:
            self.finishers.append(Finisher(*claimed))

    @precondition(lambda self: self.finishers)
    @rule(which=pick)
    def finish(self, which: int) -> None:
        self._finish(self._nth(self.finishers, which))

    def _finish(self, finisher: Finisher) -> None:
        row = self.batches[finisher.batch.id]
        held = row["lease_token"] == finisher.token and row["status"] == finisher.batch.status
        try:
            self.stage.do(self._write_and_end, finisher)
        except FencedOutError:
            assert not held
        else:
            assert held

    async def _write_and_end(self, finisher: Finisher) -> None:
        """As the engine does it, but for the writing."""
        found, good, bad, after = finisher.batch, 0, 0, 0
        while page := await self.stage.endings.page(found.id, after):
            good += sum(line.state == "succeeded" for line in page)
            bad += sum(line.state != "succeeded" for line in page)
            after = page[-1].number
        status = {
            Status.FINALIZING: Status.COMPLETED,
            Status.CANCELLING: Status.CANCELLED,
        }.get(found.status, Status.EXPIRED)
        ended = Ended(status, "out" if good else None, "err" if bad else None, good, bad)
        await self.stage.postgres.transact(end, found, finisher.token, ended)

    # -- what must hold

    @invariant()
    def everything_went_its_legal_way(self) -> None:
        lines = {(row["batch_id"], row["line"]): row for row in self.stage.rows(LINES)}
        for row in self.stage.rows(BATCHES):
            before = self.batches.get(row["id"])
            own = [line for line in lines.values() if line["batch_id"] == row["id"]]
            if before is not None:
                self._moved_legally(before, row)
                earlier = [line for line in self.lines.values() if line["batch_id"] == row["id"]]
                self._recorded_once(earlier, own, row)
            self._times_are_right(row)
            self._counts_add_up(row, own)
            self.batches[row["id"]] = row
        self.lines = lines

    def _moved_legally(self, before: dict[str, Any], after: dict[str, Any]) -> None:
        if before["status"] != after["status"]:
            assert after["status"] in EDGES.get(before["status"], set()), (before, after)
        elif before["status"] in TERMINAL:
            assert before == after
        for name in ORDER:
            assert before[name] in (None, after[name]), (name, before, after)

    def _times_are_right(self, row: dict[str, Any]) -> None:
        must, may = TIMES[row["status"]]
        there = {name for name in ORDER[1:] if row[name] is not None}
        assert must <= there <= must | may, row
        moments = [row[name] for name in ORDER if row[name] is not None]
        assert moments == sorted(moments)

    def _recorded_once(
        self, before: list[dict[str, Any]], after: list[dict[str, Any]], row: dict[str, Any]
    ) -> None:
        now = {line["line"]: line for line in after}
        for line in before:
            if line["request_id"] is not None and line["line"] in now:
                assert now[line["line"]] == line, "a result was changed"
        if row["in_progress_at"] is None:
            return  # a validation that is cut short, or begins anew, takes its lines along
        if row["status"] not in TERMINAL:
            assert set(now) >= {line["line"] for line in before}
        elif before:
            succeeded = sum(line["state"] == "succeeded" for line in before)
            assert (row["completed"], row["total"]) == (succeeded, len(before))

    def _counts_add_up(self, row: dict[str, Any], lines: list[dict[str, Any]]) -> None:
        done = row["completed"] + row["failed"]
        assert done <= row["total"] or row["total"] == done == 0
        if row["status"] in TERMINAL:
            assert not lines
            assert row["lease_token"] is None
            assert done == row["total"]
            assert (row["output_file_id"] is not None) == (row["completed"] > 0)
            assert (row["error_file_id"] is not None) == (row["failed"] > 0)
            assert (row["errors"] is not None) == (row["status"] == "failed")
            assert row["in_progress_at"] is not None or row["total"] == 0
            return
        states = [line["state"] for line in lines]
        assert row["completed"] == states.count("succeeded")
        assert row["failed"] == states.count("failed")
        recorded = sum(line["request_id"] is not None for line in lines)
        assert (row["input_tokens"], row["output_tokens"]) == (
            recorded * EACH_IN,
            recorded * EACH_OUT,
        )
        if row["in_progress_at"] is not None:
            assert row["total"] == len(lines)

    def teardown(self) -> None:
        """Whoever is left dies; one good worker then ends every batch."""
        if not self.batches:
            return
        self.stage.rows(LEASES_END)
        self.stage.rows(LINES_COME_FREE)
        for _ in range(200):
            self.everything_went_its_legal_way()
            if len(self.some(*TERMINAL)) == len(self.batches):
                return
            self._work()
        raise AssertionError([self.batches[each] for each in self.some(*EDGES)])

    def _work(self) -> None:
        """Take one step of each kind, as a healthy worker would."""
        token = uuid4()
        taken = self.stage.do(self.stage.intake.claim, token, LEASE, MOST_UNDER_WAY)
        self.everything_went_its_legal_way()
        if taken is not None:
            self.validators = [Validator(taken[0], token, taken[1])]
            self.add_lines(0, [MODELS[0], MODELS[1]])
            self.everything_went_its_legal_way()
            self.start(0)
        self.everything_went_its_legal_way()
        claimed = self.stage.do(self.stage.lines.claim, self.turns, 100)
        if claimed is not None:
            self.claims = [claimed]
            self.record(0, 100, succeeded=True)
        self.everything_went_its_legal_way()
        ending = self.stage.do(self.stage.endings.claim)
        self.everything_went_its_legal_way()
        if ending is not None:
            self._finish(Finisher(*ending))

    @staticmethod
    def _nth(items: Any, which: int) -> Any:
        return items[which % len(items)]


@pytest.fixture
def stage(stores: Any) -> Iterator[Stage]:
    with one_database(stores) as database_url:
        opened = Stage(database_url)
        try:
            yield opened
        finally:
            opened.close()


def test_every_batch_goes_a_legal_way_in_any_order_of_events(stage: Stage) -> None:
    """Legal edges only, times that stand, counts that add up, no result twice; and all end."""

    class Machine(BatchMachine):
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
