"""The queue of lines over a real PostgreSQL: leases, fences, counts."""

from __future__ import annotations

from typing import Any

import pytest
import trio

from trio_gateway.clients.postgres import Postgres
from trio_gateway.services.batches.ending import Ended, Endings, FencedOutError, end
from trio_gateway.services.batches.lines import Claim, Lines, Result, joined
from trio_gateway.services.batches.turns import Turns

ADD_BATCH = """
INSERT INTO gateway.batches (id, tenant_id, key_id, endpoint, input_file_id, input_blob,
    completion_window, fingerprint, status, models, expires_at, in_progress_at, total)
VALUES ($1, $2, 'key_' || $2, '/v1/chat/completions', 'file-1', 'files/x/file-1', '24h', '',
    'in_progress', $3, now() + interval '1 day', now(), $4)
"""
ADD_LINES = """
INSERT INTO gateway.batch_lines (batch_id, line, custom_id, model, start, length)
SELECT $1, n, 'c' || n, $2, n * 100, 100 FROM generate_series($3::integer, $4::integer) n
"""
STATES = """
SELECT state, count(*)::integer AS lines FROM gateway.batch_lines WHERE batch_id = $1
GROUP BY state ORDER BY state
"""


class Queue:
    """A database with tenants, and the queue of one worker or several."""

    def __init__(self, postgres: Postgres) -> None:
        self.postgres = postgres

    def lines(self, lease: float = 60, attempts: int = 3) -> Lines:
        return Lines(self.postgres, lease, attempts)

    async def tenant(self, name: str) -> None:
        await self.postgres.fetch("INSERT INTO gateway.tenants (id, name) VALUES ($1, $1)", name)
        await self.postgres.fetch(
            "INSERT INTO gateway.api_keys (id, tenant_id, public_id, hash)"
            " VALUES ('key_' || $1, $1, $1, '')",
            name,
        )

    async def batch(self, name: str, lines: int, tenant: str = "acme", model: str = "m") -> None:
        await self.postgres.fetch(ADD_BATCH, name, tenant, [model], lines)
        await self.postgres.fetch(ADD_LINES, name, model, 1, lines)

    async def states(self, name: str) -> dict[str, int]:
        rows = await self.postgres.fetch(STATES, name)
        return {row["state"]: row["lines"] for row in rows}

    async def row(self, name: str) -> dict[str, Any]:
        row = await self.postgres.fetch_one("SELECT * FROM gateway.batches WHERE id = $1", name)
        assert row is not None
        return dict(row)

    async def age(self, ended: str = "now() - interval '1 ms'") -> None:
        """Let every lease have run out."""
        await self.postgres.fetch(
            f"UPDATE gateway.batch_lines SET lease_until = {ended} WHERE state = 'leased'"
        )


@pytest.fixture
async def queue(postgres: Postgres) -> Queue:
    made = Queue(postgres)
    await made.tenant("acme")
    await made.tenant("other")
    return made


def any_turns() -> Turns:
    return Turns(lambda _: ("one",))


async def claimed(lines: Lines, most: int = 10) -> Claim:
    claim = await lines.claim(any_turns(), most)
    assert claim is not None
    return claim


def results(claim: Claim, *, succeeded: bool = True) -> list[Result]:
    return [
        Result(claim, line, succeeded, f"req_{line.number}", b"x" * line.number, 2, 3)
        for line in claim.lines
    ]


async def test_lines_are_claimed_once_and_in_order(queue):
    """Two claims never share a line, and each has its lines in the order of the file."""
    await queue.batch("b1", 25)
    lines = queue.lines()
    got = [await claimed(lines), await claimed(lines), await claimed(lines)]
    numbers = [line.number for claim in got for line in claim.lines]
    assert numbers == list(range(1, 26))
    assert await lines.claim(any_turns(), 10) is None


async def test_workers_that_claim_together_share_no_line(queue):
    """Eight claims at the same time lease every line exactly once."""
    await queue.batch("b1", 200)
    lines = queue.lines()
    seen: list[int] = []

    async def worker() -> None:
        while claim := await lines.claim(any_turns(), 7):
            seen.extend(line.number for line in claim.lines)

    with trio.fail_after(30):
        async with trio.open_nursery() as nursery:
            for _ in range(4):
                nursery.start_soon(worker)
    assert sorted(seen) == list(range(1, 201))


async def test_results_are_recorded_once_whoever_says_them_twice(queue):
    """A repeated record changes nothing, and the counts say what was recorded."""
    await queue.batch("b1", 3)
    lines = queue.lines()
    said = results(await claimed(lines))
    assert await lines.record("b1", "results/b1/x", said) == 3
    assert await lines.record("b1", "results/b1/y", said) == 0
    row = await queue.row("b1")
    assert (row["completed"], row["failed"]) == (3, 0)
    assert (row["input_tokens"], row["output_tokens"]) == (6, 9)
    assert await queue.states("b1") == {"succeeded": 3}


async def test_recorded_places_are_where_the_texts_are(queue):
    """Each line's start and length cut its own text out of the blob."""
    await queue.batch("b1", 4)
    lines = queue.lines()
    said = results(await claimed(lines))
    blob = joined(said)
    await lines.record("b1", "results/b1/x", said)
    rows = await queue.postgres.fetch(
        "SELECT line, result_start, result_length FROM gateway.batch_lines ORDER BY line"
    )
    texts = [blob[r["result_start"] : r["result_start"] + r["result_length"]] for r in rows]
    assert texts == [result.text for result in said]


async def test_a_late_worker_records_nothing(queue):
    """Once a lease ran out and the line is another's, the first holder's result is not taken."""
    await queue.batch("b1", 5)
    lines = queue.lines()
    late = await claimed(lines)
    await queue.age()
    fresh = await claimed(lines)
    assert await lines.record("b1", "results/b1/late", results(late)) == 0
    assert await lines.record("b1", "results/b1/fresh", results(fresh)) == 5
    assert (await queue.row("b1"))["completed"] == 5


async def test_a_lease_that_runs_out_is_a_failed_attempt(queue):
    """A line whose workers keep dying is given up, and counted as failed, after the cap."""
    await queue.batch("b1", 1)
    lines = queue.lines(attempts=3)
    for attempt in range(3):
        claim = await claimed(lines)
        assert claim.lines[0].attempts == attempt
        await queue.age()
    assert await lines.claim(any_turns(), 10) is None
    assert await queue.states("b1") == {"failed": 1}
    assert (await queue.row("b1"))["failed"] == 1


async def test_a_lease_that_the_database_slept_through_is_no_attempt(queue):
    """Nobody could have prolonged it since the database was started: the line is not to blame."""
    await queue.batch("b1", 1)
    lines = queue.lines(attempts=1)
    for _ in range(3):
        assert (await claimed(lines)).lines[0].attempts == 0
        await queue.age("pg_postmaster_start_time() - interval '1 ms'")


async def test_renewing_says_which_lines_are_still_ours(queue):
    """After a lease was lost to another, renewing the old token yields nothing."""
    await queue.batch("b1", 2)
    lines = queue.lines()
    first = await claimed(lines)
    assert await lines.renew([first.token]) == {("b1", 1), ("b1", 2)}
    await queue.age()
    await claimed(lines)
    assert await lines.renew([first.token]) == set()


async def test_released_lines_wait_for_their_delay(queue):
    """A line put back for later is claimed by nobody before; one put back at once is."""
    await queue.batch("b1", 2)
    lines = queue.lines()
    claim = await claimed(lines)
    await lines.release(claim, [1], delay=3600, failed=True)
    await lines.release(claim, [2])
    again = await claimed(lines)
    assert [line.number for line in again.lines] == [2]
    assert await queue.states("b1") == {"leased": 1, "queued": 1}


async def test_a_batch_that_is_held_off_is_left_alone(queue):
    """Nobody claims from it, its object says why, and a success after it lifts the pause."""
    await queue.batch("b1", 2)
    await queue.batch("b2", 1, tenant="other")
    lines = queue.lines()
    claim = await claimed(lines, 1)
    assert claim.batch_id == "b1"
    await lines.hold_off("b1", 3600, "insufficient_quota")
    assert (await claimed(lines)).batch_id == "b2"
    assert await lines.claim(any_turns(), 1) is None
    await lines.record("b1", "results/b1/x", results(claim))
    assert (await queue.row("b1"))["paused"] == "insufficient_quota", "it was begun before"
    await queue.postgres.fetch("UPDATE gateway.batches SET resume_at = now() WHERE id = 'b1'")
    await lines.record("b1", "results/b1/y", results(await claimed(lines, 1)))
    assert (await queue.row("b1"))["paused"] is None


@pytest.mark.parametrize("status", ["cancelling", "finalizing", "completed", "failed"])
async def test_only_batches_in_progress_have_lines_to_claim(queue, status):
    """Any other status ends the claiming at once, and running batches are told to stop."""
    await queue.batch("b1", 2)
    lines = queue.lines()
    await claimed(lines, 1)
    assert await lines.stopped(["b1"]) == set()
    await queue.postgres.fetch("UPDATE gateway.batches SET status = $1", status)
    assert await lines.claim(any_turns(), 1) is None
    assert await lines.stopped(["b1"]) == {"b1"}


async def test_a_batch_past_its_window_has_no_lines_to_claim(queue):
    """Nothing is begun after the window's end."""
    await queue.batch("b1", 2)
    await queue.postgres.fetch("UPDATE gateway.batches SET expires_at = now()")
    assert await queue.lines().claim(any_turns(), 1) is None


async def test_a_batch_is_ended_when_its_last_line_is_done(queue):
    """Until then nobody may end it; then one may, and the batch says `finalizing`."""
    await queue.batch("b1", 2)
    lines, endings = queue.lines(), Endings(queue.postgres, 60)
    claim = await claimed(lines)
    assert await endings.claim() is None
    await lines.record("b1", "results/b1/x", results(claim))
    found = await endings.claim()
    assert found is not None
    assert (found[0].status, found[0].finalizing_at is not None) == ("finalizing", True)
    assert await endings.claim() is None


async def test_a_cancelled_batch_waits_for_lines_in_flight(queue):
    """It ends when they are put back or their leases run out, and what is left is abandoned."""
    await queue.batch("b1", 3)
    lines, endings = queue.lines(), Endings(queue.postgres, 60)
    claim = await claimed(lines, 2)
    await lines.record("b1", "results/b1/x", results(claim)[:1])
    await queue.postgres.fetch("UPDATE gateway.batches SET status = 'cancelling'")
    assert await endings.claim() is None
    await queue.age()
    found = await endings.claim()
    assert found is not None
    assert found[0].status == "cancelling"
    assert await queue.states("b1") == {"abandoned": 2, "succeeded": 1}
    assert await lines.record("b1", "results/b1/late", results(claim)[1:]) == 0


async def test_an_end_that_lost_its_lease_changes_nothing(queue):
    """A cancel that comes while the files are written wins; so does whoever took over."""
    await queue.batch("b1", 1)
    lines, endings = queue.lines(), Endings(queue.postgres, 60)
    await lines.record("b1", "results/b1/x", results(await claimed(lines)))
    found = await endings.claim()
    assert found is not None
    await queue.postgres.fetch(
        "UPDATE gateway.batches SET status = 'cancelling', lease_token = NULL, lease_until = NULL"
    )
    with pytest.raises(FencedOutError):
        await queue.postgres.transact(end, *found, Ended(found[0].status, None, None, 1, 0))
    assert (await queue.row("b1"))["status"] == "cancelling"
    assert await queue.states("b1") == {"succeeded": 1}
    assert not await endings.renew("b1", found[1])
