"""One call as one task, in virtual time: what its reader hears, and when upstream is let go."""

from __future__ import annotations

import httpx
import pytest
import trio
import trio.testing

from tests.pipeline.stage import ESTIMATE, Player, Stage, carried, chunks_of, heard, last, line
from trio_gateway.core.domain import Basis, Outcome
from trio_gateway.core.errors import (
    ClientStalled,
    GatewayError,
    ModelNotFound,
    ShuttingDown,
    StoreUnavailable,
    Unauthenticated,
    UpstreamError,
    UpstreamTimeout,
)


def about(seconds):
    """Say when a limit ends: on time, or up to a tenth late."""
    return pytest.approx(seconds * 1.05, rel=0.05)


async def test_every_chunk_arrives_in_order_and_the_last_is_done(autojump_clock):
    """Chunks that arrived together travel together, and the row has upstream's counts."""
    stage = Stage(Player([line("a") + line("b"), 1, line("c"), last(eval_count=3)]))
    async with carried(stage) as (_, body):
        batches = [[chunk.content for chunk in chunks_of(item)] async for item in body]
    assert batches == [["a", "b"], ["c"], [""]]
    assert (stage.row.outcome, stage.row.basis) == (Outcome.COMPLETED, Basis.FINAL)
    assert (stage.row.prompt_tokens, stage.row.completion_tokens) == (6, 3)
    assert stage.row.duration_ms == pytest.approx(1000)


async def test_good_lines_before_a_broken_one_are_handed_on_and_charged(autojump_clock):
    """What arrived in one piece with the garbage behind it is not lost."""
    stage = Stage(Player([line("a") + line("b") + b"no JSON\n"]))
    async with carried(stage) as (_, body):
        texts, error = await heard(body)
    assert texts == ["a", "b"]
    assert error is UpstreamError
    assert (stage.row.outcome, stage.row.completion_tokens) == (Outcome.UPSTREAM_ERROR, 2)


@pytest.mark.parametrize("end", [[], [httpx.ReadError("gone")], [b'{"error":"words"}\n']])
async def test_an_end_without_done_is_an_error(autojump_clock, end):
    """A clean end, a broken connection and an error line all end in our own error."""
    stage = Stage(Player([line(), *end]))
    async with carried(stage) as (_, body):
        texts, error = await heard(body)
    assert texts == ["t "]
    assert error is UpstreamError
    assert (stage.row.basis, stage.row.charged_tokens) == (Basis.PARTIAL, ESTIMATE + 1)


async def test_silence_is_ended_by_the_idle_limit(autojump_clock):
    """Sixty seconds after the last chunk, and not after the first."""
    stage = Stage(Player([line(), 50, line(), 50, line(), 1e6]))
    began = trio.current_time()
    async with carried(stage) as (_, body):
        texts, error = await heard(body)
    assert (len(texts), error) == (3, UpstreamTimeout)
    assert (stage.tape.closed_at or 0) - began - 100 == about(60)
    assert stage.row.outcome is Outcome.TIMEOUT


async def test_the_call_timeout_ends_a_talkative_call(autojump_clock):
    """However steadily upstream speaks, the whole call has its limit."""
    stage = Stage(Player([step for _ in range(9) for step in (line(), 50)]), call_timeout=120)
    began = trio.current_time()
    async with carried(stage) as (_, body):
        texts, error = await heard(body)
    assert (len(texts), error) == (3, UpstreamTimeout)
    assert stage.tape.closed_at == pytest.approx(began + 120)


@pytest.mark.parametrize(("limit", "when"), [(1000, 300), (120, 120)])
async def test_a_model_that_loads_too_long_is_a_timeout(autojump_clock, limit, when):
    """The first-byte limit or the call's, whichever comes first, with a status of its own."""
    stage = Stage(Player([line()], head_delay=1e6), call_timeout=limit)
    began = trio.current_time()
    async with carried(stage) as (_, body):
        assert await heard(body) == ([], UpstreamTimeout)
    assert trio.current_time() - began == about(when)
    assert (stage.row.outcome, stage.row.basis) == (Outcome.TIMEOUT, Basis.ESTIMATED)
    assert (stage.row.status_code, stage.row.charged_tokens) == (504, ESTIMATE)


async def test_a_reader_that_stalls_is_told_nothing_and_upstream_is_closed(autojump_clock):
    """After the write-stall limit: ClientStalled is raised, at once and not after a farewell."""
    stage = Stage(Player([line(), line(), 1e6]))
    began = trio.current_time()
    with pytest.RaisesGroup(ClientStalled):
        async with carried(stage):
            await trio.sleep_forever()
    assert trio.current_time() - began == about(30)
    assert stage.tape.closed_at == pytest.approx(trio.current_time())
    assert (stage.row.outcome, stage.row.basis) == (Outcome.ABORTED, Basis.PARTIAL)


async def test_a_reader_that_is_slow_within_the_limit_hears_everything(autojump_clock):
    """The limit counts from the last batch taken."""
    stage = Stage(Player([step for _ in range(5) for step in (line(), 1)] + [last()]))
    async with carried(stage) as (_, body):
        texts = []
        async for item in body:
            texts += chunks_of(item)
            await trio.sleep(29)
    assert len(texts) == 6
    assert stage.row.outcome is Outcome.COMPLETED


async def test_a_cut_closes_upstream_before_the_reader_has_heard_of_it(autojump_clock):
    """A reader that does not read delays neither the GPU's end nor, for long, the account's."""
    stage = Stage(Player([line(), 1, line(), 1e6]))
    began = trio.current_time()
    with pytest.RaisesGroup(ClientStalled):
        async with carried(stage) as (leash, _):
            await trio.sleep(10)
            leash.cut(Unauthenticated())
            await trio.sleep_forever()
    assert stage.tape.closed_at == pytest.approx(began + 10)
    assert trio.current_time() == pytest.approx(began + 12)
    assert stage.row.outcome is Outcome.REVOKED


@pytest.mark.parametrize(
    ("reason", "outcome"),
    [
        (Unauthenticated, Outcome.REVOKED),
        (ShuttingDown, Outcome.DRAINED),
        (StoreUnavailable, Outcome.UPSTREAM_ERROR),
    ],
)
async def test_a_cut_midway_is_the_last_thing_heard(autojump_clock, reason, outcome):
    """The reader hears the reason, behind every chunk that came before."""
    stage = Stage(Player([line(), 1e6]))
    async with carried(stage) as (leash, body):
        first = chunks_of(await body.receive())
        leash.cut(reason())
        texts, error = await heard(body)
    assert (len(first), texts, error) == (1, [], reason)
    assert (stage.row.outcome, stage.row.basis) == (outcome, Basis.PARTIAL)


async def test_a_cut_together_with_the_first_bytes_comes_first(autojump_clock):
    """It comes between the bytes' arrival and the start: the call ends with a status."""
    stage = Stage(Player([]))
    async with carried(stage) as (leash, body):
        stage.player.steps = [lambda: leash.cut(Unauthenticated()), line(), 1e6]
        assert await heard(body) == ([], Unauthenticated)
    assert (stage.row.outcome, stage.row.status_code) == (Outcome.REVOKED, 401)


async def test_a_cut_behind_the_done_chunk_changes_nothing(autojump_clock):
    """Upstream has said done and dawdles with the end of its body: the call is complete."""
    stage = Stage(Player([line(), last(), 1e6]))
    began = trio.current_time()
    async with carried(stage) as (leash, body):
        _, error = await heard(body)
        assert error is None
        leash.cut(Unauthenticated())
    assert (stage.row.outcome, stage.row.basis) == (Outcome.COMPLETED, Basis.FINAL)
    assert trio.current_time() - began < 1, "and its account is closed within a second"


async def test_a_deadline_behind_the_done_chunk_changes_nothing(autojump_clock):
    """As with a cut."""
    stage = Stage(Player([line(), 9.9, last(), 1e6]), call_timeout=10)
    async with carried(stage) as (_, body):
        _, error = await heard(body)
    assert (error, stage.row.outcome) == (None, Outcome.COMPLETED)


async def test_the_ceiling_cuts_and_says_length(autojump_clock):
    """One chunk past the ceiling is not handed on; an honest last chunk takes its place."""
    stage = Stage(Player([line() * 3 + line() * 3, 1e6]))
    stage.counters.ceiling = 4
    began = trio.current_time()
    async with carried(stage) as (_, body):
        chunks = [chunk async for item in body for chunk in chunks_of(item)]
    assert [chunk.done_reason for chunk in chunks] == [None] * 4 + ["length"]
    assert (chunks[-1].prompt_tokens, chunks[-1].output_tokens) == (ESTIMATE, 4)
    assert stage.player.requests[0]["options"]["num_predict"] == 4
    assert (stage.row.outcome, stage.row.completion_tokens) == (Outcome.CUT, 4)
    assert stage.row.status_code == 200
    assert stage.tape.closed_at == pytest.approx(began)


async def test_a_call_whose_hold_was_not_renewed_is_cut_before_another_chunk(autojump_clock):
    """A whole lease without a renewal while Redis could be reached: a sweeper may have been."""
    stage = Stage(Player([line(), 20, line(), 1e6]), lease=15)
    async with carried(stage) as (_, body):
        texts, error = await heard(body)
    assert (len(texts), error) == (1, StoreUnavailable)


async def test_a_call_goes_on_while_redis_is_away(autojump_clock):
    """Not reachable is not swept."""
    stage = Stage(Player([line(), 20, line(), last()]), lease=15)
    stage.counters.reachable_since = None
    async with carried(stage) as (_, body):
        texts, error = await heard(body)
    assert (len(texts), error) == (3, None)


async def test_a_swept_hold_cuts_the_call(autojump_clock):
    """Whoever finds the row written already ends the call through its hold."""
    stage = Stage(Player([line(), 1e6]))
    async with carried(stage) as (_, body):
        await body.receive()
        stage.counters.holds[0].swept()
        _, error = await heard(body)
    assert error is StoreUnavailable


@pytest.mark.parametrize("steps", [[1e6], [line(), 1e6]], ids=["loading", "streaming"])
async def test_a_hangup_closes_upstream_and_settles_once(autojump_clock, steps):
    """The request's nursery is cancelled, told to be the client's doing."""
    stage = Stage(Player(steps))
    async with trio.open_nursery() as nursery, carried(stage) as (leash, _):
        await trio.testing.wait_all_tasks_blocked()
        leash.client_left = True
        nursery.cancel_scope.cancel()
    assert stage.row.outcome is Outcome.ABORTED
    assert stage.tape.closed_at is not None
    assert stage.backends.in_flight == 0


async def test_a_bug_is_told_as_an_internal_error_and_logged(autojump_clock):
    """What is not ours ends the stream as `internal_error`, without its text."""
    stage = Stage(Player([line(), RuntimeError("secret")]))
    async with carried(stage) as (_, body):
        items = [item async for item in body]
    assert (type(items[-1]), items[-1].code) == (GatewayError, "internal_error")
    assert "secret" not in items[-1].message
    assert stage.row.outcome is Outcome.UPSTREAM_ERROR


async def test_a_model_that_may_not_be_used_is_refused_before_anything_is_held(autojump_clock):
    """Authorization comes first."""
    stage = Stage(Player([]))
    stage.shelf.found = None
    async with carried(stage) as (_, body):
        assert await heard(body) == ([], ModelNotFound)
    assert (stage.counters.holds, stage.book.rows) == ([], [])
