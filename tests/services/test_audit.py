"""Refusals on their way to the audit log: none waits, none is lost, all are bounded."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import trio

from trio_gateway.clients.postgres import NotMigrated
from trio_gateway.core.errors import StoreUnavailable
from trio_gateway.services.audit import AuditLog, Refusal

LIMIT = 60


class Faulty:
    """A store that can be made to fail, and that says when it has been asked."""

    def __init__(self, postgres):
        self.real = postgres
        self.failure = None
        self.stall = False
        self.asked = trio.Event()

    async def transact(self, operation, *args):
        self.asked.set()
        if self.stall:
            await trio.sleep_forever()
        if self.failure is not None:
            raise self.failure
        return await self.real.transact(operation, *args)


def refusal(**changes) -> Refusal:
    plain = Refusal(
        "endpoint_not_allowed", 403, "POST", "/api/pull", request_id="req_1", client="10.0.0.1"
    )
    return replace(plain, **changes)


async def rows(postgres):
    return await postgres.fetch("SELECT * FROM gateway.audit_log ORDER BY id")


async def until_counted(postgres, count):
    """Wait until the log's counts add up, asking the database and nothing else."""
    while sum(row["count"] for row in await rows(postgres)) != count:
        await trio.lowlevel.checkpoint()


async def test_a_refusal_is_visible_within_a_second(postgres):
    """The first of its kind is written at once, with all that is known of it."""
    with trio.fail_after(LIMIT):
        log = AuditLog(postgres)
        async with trio.open_nursery() as nursery:
            await nursery.start(log.run)
            log.record(refusal(tenant_id="ten_a", key_id="key_a"))
            with trio.fail_after(1):
                await until_counted(postgres, 1)
            nursery.cancel_scope.cancel()
        (row,) = await rows(postgres)
        assert (row["code"], row["status_code"]) == ("endpoint_not_allowed", 403)
        assert (row["method"], row["path"], row["client"]) == ("POST", "/api/pull", "10.0.0.1")
        assert (row["tenant_id"], row["key_id"]) == ("ten_a", "key_a")
        assert row["request_id"] == "req_1"
        assert row["at"] == row["last_at"]


async def test_identical_refusals_share_a_row_before_and_after_it_is_written(postgres):
    """Repeats add to the count, whatever their request id; others have rows of their own."""
    with trio.fail_after(LIMIT):
        log = AuditLog(postgres)
        for number in range(50):
            log.record(refusal(request_id=f"req_{number}"))
        assert log.waiting == 50
        assert await log.flush() == 0
        for _ in range(25):
            log.record(refusal(request_id="req_later"))
        log.record(refusal(path="/api/push"))
        await log.flush()
        found = [(row["path"], row["count"], row["request_id"]) for row in await rows(postgres)]
        assert found == [("/api/pull", 75, "req_0"), ("/api/push", 1, "req_1")]
        first = (await rows(postgres))[0]
        assert first["last_at"] >= first["at"]


async def test_a_row_takes_repeats_for_a_minute(postgres):
    """After that the same refusal begins a new row, so that time can be read from the log."""
    with trio.fail_after(LIMIT):
        now = [datetime.now(UTC)]
        log = AuditLog(postgres, now=lambda: now[0])
        for _ in range(2):
            log.record(refusal())
            await log.flush()
            now[0] += timedelta(minutes=1, seconds=1)
        assert [row["count"] for row in await rows(postgres)] == [1, 1]


async def test_what_does_not_fit_is_counted_in_one_row(postgres):
    """A flood of different refusals costs bounded memory, and its size is still known."""
    with trio.fail_after(LIMIT):
        log = AuditLog(postgres, bound=3)
        for number in range(10):
            log.record(refusal(path=f"/{number}"))
        await log.flush()
        found = [(row["code"], row["path"], row["count"]) for row in await rows(postgres)]
        kept = [("endpoint_not_allowed", f"/{number}", 1) for number in range(3)]
        assert found == [*kept, ("audit_overflow", "", 7)]


async def test_hostile_text_is_cut_and_made_printable(postgres):
    """NUL, control characters, lone surrogates and endless paths neither fail nor pass."""
    with trio.fail_after(LIMIT):
        log = AuditLog(postgres)
        log.record(refusal(path="/\0\x1b[2J\ud800" + "x" * 5000, method="M" * 99, client=None))
        log.record(refusal(client="\n" * 500))
        await log.flush()
        first, second = await rows(postgres)
        assert first["path"].startswith("/??[2J?xxx")
        assert (len(first["path"]), len(first["method"])) == (200, 20)
        assert first["client"] is None
        assert second["client"] == "?" * 100


async def test_refusals_outlive_an_outage_of_the_store(postgres):
    """What cannot be written is kept, counted on, and written when the store is back."""
    with trio.fail_after(LIMIT):
        store: Any = Faulty(postgres)
        log = AuditLog(store)
        async with trio.open_nursery() as nursery:
            await nursery.start(log.run)
            for failure in (StoreUnavailable(), NotMigrated()):
                store.failure, store.asked = failure, trio.Event()
                log.record(refusal())
                await store.asked.wait()
                log.record(refusal())
                assert await log.flush() == log.waiting
            store.failure = None
            await until_counted(postgres, 4)
            nursery.cancel_scope.cancel()
        assert log.waiting == 0


async def test_the_bound_holds_while_the_store_is_away(postgres):
    """A group that comes back joins what came since, within the bound."""
    with trio.fail_after(LIMIT):
        store: Any = Faulty(postgres)
        store.failure = StoreUnavailable()
        log = AuditLog(store, bound=2)
        for path in ("/a", "/b", "/a", "/c", "/d"):
            log.record(refusal(path=path))
            await log.flush()
        store.failure = None
        assert await log.flush() == 0
        found = {(row["path"], row["count"]) for row in await rows(postgres)}
        assert found == {("/a", 2), ("/b", 1), ("", 2)}


async def test_a_write_that_is_cut_loses_nothing(postgres):
    """Shutdown may cut a write that takes too long; the flush that follows has it all."""
    with trio.fail_after(LIMIT):
        store: Any = Faulty(postgres)
        store.stall = True
        log = AuditLog(store)
        async with trio.open_nursery() as nursery:
            await nursery.start(log.run)
            log.record(refusal())
            await store.asked.wait()
            log.record(refusal(path="/since"))
            log.record(refusal())
            nursery.cancel_scope.cancel()
        store.stall = False
        assert log.waiting == 3
        assert await log.flush() == 0
        found = {(row["path"], row["count"]) for row in await rows(postgres)}
        assert found == {("/api/pull", 2), ("/since", 1)}
        assert await log.flush() == 0


async def test_remembered_rows_are_bounded(postgres):
    """Only so many rows are remembered for their repeats; the rest begin anew."""
    with trio.fail_after(LIMIT):
        log = AuditLog(postgres, bound=2)
        for path in ("/a", "/b", "/c", "/a", "/c"):
            log.record(refusal(path=path))
            await log.flush()
        found = [(row["path"], row["count"]) for row in await rows(postgres)]
        assert found == [("/a", 1), ("/b", 1), ("/c", 2), ("/a", 1)]
