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

LIMIT = 60.0  # seconds for one step
LEASE = 600.0  # seconds: leases end by hand only
MOST_UNDER_WAY = 2  # batches of one tenant
MOST_BATCHES = 8  # of one run
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
LINES = """
SELECT batch_id, line, custom_id, state, request_id, attempts,
    state = 'leased' AND lease_until >= now() AS flying FROM gateway.batch_lines
"""
LEASES_END = """
UPDATE gateway.batches SET lease_until = now() - interval '1 ms' WHERE lease_token IS NOT NULL
"""
LINES_COME_FREE = """
UPDATE gateway.batch_lines SET lease_until = now() - interval '1 ms' WHERE state = 'leased'
"""
WINDOW_ENDS = "UPDATE gateway.batches SET expires_at = now() WHERE id = $1"

# More often what leads on.
ACTS = (
    *["create", "start", "start", "cancel", "window ends", "leases end"],
    *["take in", "take in", "add", "add", "begin", "fail", "drop"],
    *["claim", "claim", "claim", "record", "record", "record", "renew", "put back", "failed"],
    *["end", "end", "finish", "finish"],
)

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
        self._token, self._stop, self.postgres = self._ready.get(timeout=120)
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
        for tenant in TENANTS:
            self._create_and_start(tenant, [*MODELS] * 3)

    def some(self, *statuses: str) -> list[str]:
        """Return the batches in one of the statuses, in all of them without any named."""
        return [
            batch_id
            for batch_id, row in self.batches.items()
            if not statuses or row["status"] in statuses
        ]

    @rule(
        act=st.sampled_from(ACTS),
        which=pick,
        part=st.integers(1, 5),
        models=st.lists(st.sampled_from(MODELS), min_size=1, max_size=5),
    )
    def act(self, act: str, which: int, part: int, models: list[str]) -> None:
        """One rule for all, as Hypothesis leaves out most of several in each of its runs."""
        if act in {"create", "start", "cancel", "window ends"}:
            self._call(act, which, models)
        elif act in {"take in", "add", "begin", "fail", "drop"}:
            self._validate(act, which, models)
        elif act in {"record", "renew", "put back", "failed"}:
            if self.claims:
                self._hold(act, self._nth(self.claims[::-1], which % 4), part, which % 5 > 0)
        elif act == "claim":
            self._claim(part)
        elif act == "end":
            self._begin_to_end()
        elif act == "finish":
            if self.finishers:
                self._finish(self._nth(self.finishers[::-1], which % 3))
        else:  # workers die or stand still: their leases end, and some go on all the same
            self.stage.rows(LEASES_END if which % 2 else LINES_COME_FREE)

    # -- callers

    def _call(self, act: str, which: int, models: list[str]) -> None:
        tenant, running = TENANTS[which % 2], self.some("validating", "in_progress")
        if act == "cancel" and self.batches:
            self._cancel(self._nth(self.some(), which))
        elif act == "window ends" and running:
            self.stage.rows(WINDOW_ENDS, self._nth(running, which))
        elif act == "create" and len(self.batches) < MOST_BATCHES:
            self._create(tenant, there=bool(which % 4))
        elif act == "start" and len(self.some("in_progress")) < len(TENANTS):
            self._create_and_start(tenant, models)

    def _create(self, tenant: str, *, there: bool) -> None:
        principal = caller(tenant_id=tenant, key_id=f"key_{tenant}")
        wanted = Wanted(f"{FILE if there else NO_FILE}{tenant}", "/v1/chat/completions")
        made, replayed = self.stage.do(self.stage.book.create, principal, wanted)
        assert (made.status, replayed) == (Status.VALIDATING, False)

    def _create_and_start(self, tenant: str, models: list[str]) -> None:
        """Most batches have no trouble on their way in."""
        self._create(tenant, there=True)
        self.everything_went_its_legal_way()
        self._take_in()
        self.everything_went_its_legal_way()
        for validator in self.validators:
            if not validator.lines and self._holds(validator):
                self._add(validator, models)
                self._start(validator)
                self.everything_went_its_legal_way()

    def _cancel(self, batch_id: str) -> None:
        before = self.batches[batch_id]["status"]
        row = self.stage.rows("SELECT tenant_id FROM gateway.batches WHERE id = $1", batch_id)[0]
        try:
            found = self.stage.do(self.stage.book.cancel, row["tenant_id"], batch_id)
        except Conflict:
            assert before in {"completed", "failed", "expired"}
        else:
            assert found.status in {Status.CANCELLING, Status.CANCELLED}
            assert before not in {"completed", "failed", "expired"}

    # -- validation

    def _validate(self, act: str, which: int, models: list[str]) -> None:
        if act == "take in" or not self.validators:
            self._take_in()
            return
        validator = self._nth(self.validators[::-1], which % 3)
        if act == "add":
            self._add(validator, models)
        elif act == "begin" and validator.lines:
            self._start(validator)
        elif act == "fail":
            errors = [LineError("invalid_json_line", "no", None, 1)]
            batch_id, token = validator.batch.id, validator.token
            failed = self.stage.do(self.stage.intake.fail, batch_id, token, errors)
            assert failed is self._holds(validator)
        elif act == "drop":
            self.stage.do(self.stage.intake.drop, validator.batch.id, validator.token)

    def _take_in(self) -> None:
        token = uuid4()
        claimed = self.stage.do(self.stage.intake.claim, token, LEASE, MOST_UNDER_WAY)
        if claimed is not None:
            self.validators.append(Validator(claimed[0], token, claimed[1]))

    def _add(self, validator: Validator, models: list[str]) -> None:
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

    def _start(self, validator: Validator) -> None:
        models = sorted({line.model for line in validator.lines})
        batch_id, token, total = validator.batch.id, validator.token, len(validator.lines)
        began = self.stage.do(self.stage.intake.begin, batch_id, token, total, models)
        assert began is self._holds(validator)

    def _holds(self, validator: Validator) -> bool:
        row = self.batches[validator.batch.id]
        return bool(row["status"] == "validating" and row["lease_token"] == validator.token)

    # -- lines

    def _claim(self, most: int) -> None:
        claimed = self.stage.do(self.stage.lines.claim, self.turns, most)
        if claimed is not None:
            assert self.batches[claimed.batch_id]["status"] == "in_progress"
            assert len(claimed.lines) <= most
            self.claims.append(claimed)

    def _hold(self, act: str, claim: Claim, part: int, good: bool) -> None:
        async def release() -> None:
            numbers = [line.number for line in claim.lines[:part]]
            await self.stage.lines.release(claim, numbers, failed=act == "failed")

        if act == "record":
            self._record(claim, part, good=good)
        elif act == "renew":
            ours = self.stage.do(self.stage.lines.renew, [claim.token])
            assert ours <= {(claim.batch_id, line.number) for line in claim.lines}
        else:
            self.stage.do(release)

    def _record(self, claim: Claim, part: int, *, good: bool) -> None:
        results = [
            Result(claim, line, good, f"req_{next(self.numbers)}", b"text", EACH_IN, EACH_OUT)
            for line in claim.lines[:part]
        ]
        path = f"results/{claim.batch_id}/{next(self.numbers)}"
        counted = self.stage.do(self.stage.lines.record, claim.batch_id, path, results)
        said = {result.request_id for result in results}
        taken = [row for row in self.stage.rows(LINES) if row["request_id"] in said]
        assert counted == len(taken)

    # -- the end

    def _begin_to_end(self) -> None:
        claimed = self.stage.do(self.stage.endings.claim)
        if claimed is not None:
            flying = [
                line
                for line in self.lines.values()
                if line["batch_id"] == claimed[0].id and line["flying"]
            ]
            assert not flying, "lines in flight are waited for"
            self.finishers.append(Finisher(*claimed))

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
            validator = Validator(taken[0], token, taken[1])
            self._add(validator, [*MODELS])
            self.everything_went_its_legal_way()
            self._start(validator)
        self.everything_went_its_legal_way()
        claimed = self.stage.do(self.stage.lines.claim, self.turns, 100)
        if claimed is not None:
            self._record(claimed, 100, good=True)
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
            max_examples=40,
            stateful_step_count=50,
            derandomize=True,
            phases=[Phase.generate],  # shrinking takes minutes: ask for it when there is a failure
            database=None,
            deadline=None,
            suppress_health_check=list(HealthCheck),
            print_blob=False,
        ),
    )
