"""Admission in virtual time: what is held, what is given back, and what the row says."""

from __future__ import annotations

import pytest
import trio
import trio.testing

from tests.pipeline.stage import BACKEND, ESTIMATE, PRINCIPAL, Book, Player, Stage, errand
from trio_gateway.core.domain import Basis, Outcome
from trio_gateway.core.errors import (
    InvalidCall,
    Overloaded,
    RateLimited,
    StoreUnavailable,
    Unauthenticated,
    UpstreamError,
    UpstreamTimeout,
    UpstreamUnavailable,
)
from trio_gateway.pipeline.admission import SETTLE_LIMIT, admit
from trio_gateway.services.quota.holds import DISPATCHED, FINAL, QUEUED


def opening(stage, leash, **more):
    """Return `admit` for one errand."""
    asked = errand()
    if more:
        asked = type(asked)(asked.request_id, asked.principal, asked.call, **more)
    return admit(stage.gate, leash, asked, stage.gate.authorize(PRINCIPAL, asked.call.model))


async def test_a_free_slot_is_written_into_the_hold_at_once(autojump_clock):
    """No second round trip: the reserve has the phase and the backend already."""
    stage = Stage(Player([]))
    with stage.live.hold(PRINCIPAL) as leash:
        async with opening(stage, leash) as admission:
            assert (admission.hold.phase, admission.backend) == (DISPATCHED, BACKEND)
            assert stage.backends.in_flight == 1
            admission.finish(Outcome.COMPLETED)
    assert stage.backends.in_flight == 0
    assert stage.counters.backends == [BACKEND]


async def test_a_queued_call_is_marked_before_it_is_dispatched(autojump_clock):
    """It holds while it waits, and its phase changes with its slot."""
    stage = Stage(Player([]))
    first = stage.backends.try_take([BACKEND])
    assert first is not None
    phases = []
    with stage.live.hold(PRINCIPAL) as leash:
        async with trio.open_nursery() as nursery:

            async def wait():
                async with opening(stage, leash) as admission:
                    phases.append(admission.hold.phase)

            nursery.start_soon(wait)
            await trio.testing.wait_all_tasks_blocked()
            phases.append(stage.counters.holds[0].phase)
            first.release()
    assert phases == [QUEUED, DISPATCHED]
    assert stage.counters.backends == [None, BACKEND]


@pytest.mark.parametrize("error", [RateLimited(), StoreUnavailable()])
async def test_a_refused_reserve_gives_the_slot_back(autojump_clock, error):
    """Nothing is held, nothing is written."""
    stage = Stage(Player([]))
    stage.counters.error = error
    with stage.live.hold(PRINCIPAL) as leash, pytest.raises(type(error)):
        async with opening(stage, leash):
            pass
    assert (stage.backends.in_flight, stage.book.rows) == (0, [])


async def test_the_queue_is_left_when_it_takes_too_long(autojump_clock):
    """After the queue's own limit the row says refused, at no cost."""
    stage = Stage(Player([]))
    stage.backends.try_take([BACKEND])
    began = trio.current_time()
    with stage.live.hold(PRINCIPAL) as leash, pytest.raises(Overloaded):
        async with opening(stage, leash):
            pass
    assert trio.current_time() == pytest.approx(began + 50)
    assert (stage.row.outcome, stage.row.basis) == (Outcome.REFUSED, Basis.NONE)
    assert (stage.row.status_code, stage.row.charged_tokens) == (503, 0)


async def test_the_calls_own_deadline_counts_in_the_queue(autojump_clock):
    """CALL_TIMEOUT before QUEUE_TIMEOUT: a timeout by status, never dispatched by account."""
    stage = Stage(Player([]))
    stage.backends.try_take([BACKEND])
    until = trio.current_time() + 20
    with stage.live.hold(PRINCIPAL) as leash, pytest.raises(UpstreamTimeout):
        async with opening(stage, leash, deadline=until):
            pass
    assert trio.current_time() == pytest.approx(until)
    assert (stage.row.outcome, stage.row.basis) == (Outcome.REFUSED, Basis.NONE)
    assert stage.row.status_code == 504
    assert stage.backends.waiting == 0


@pytest.mark.parametrize("where", ["reserving", "queued"])
async def test_a_cut_before_the_dispatch_costs_nothing(autojump_clock, where):
    """The reason is raised and is the row's outcome: a hold once taken is settled."""
    stage = Stage(Player([]))
    if where == "reserving":
        stage.counters.delay = 10
    else:
        stage.backends.try_take([BACKEND])
    with stage.live.hold(PRINCIPAL) as leash:
        async with trio.open_nursery() as nursery:

            async def cut():
                await trio.testing.wait_all_tasks_blocked()
                leash.cut(Unauthenticated())

            nursery.start_soon(cut)
            with pytest.raises(Unauthenticated):
                async with opening(stage, leash):
                    pytest.fail("must not be admitted")
    assert (stage.row.outcome, stage.row.basis) == (Outcome.REVOKED, Basis.NONE)
    assert (stage.row.status_code, stage.row.charged_tokens) == (401, 0)
    assert stage.backends.in_flight == (0 if where == "reserving" else 1)


@pytest.mark.parametrize(("left", "outcome"), [(True, Outcome.ABORTED), (False, Outcome.DRAINED)])
@pytest.mark.parametrize("where", ["reserving", "queued", "dispatched"])
async def test_a_cancel_is_the_clients_or_the_servers(autojump_clock, where, left, outcome):
    """Cancelled in any phase: aborted where the client left, drained where the server stops."""
    stage = Stage(Player([]))
    if where == "reserving":
        stage.counters.delay = 10
    elif where == "queued":
        stage.backends.try_take([BACKEND])
    with stage.live.hold(PRINCIPAL) as leash:
        async with trio.open_nursery() as nursery:

            async def wait():
                async with opening(stage, leash):
                    await trio.sleep_forever()

            nursery.start_soon(wait)
            await trio.testing.wait_all_tasks_blocked()
            leash.client_left = left
            nursery.cancel_scope.cancel()
    dispatched = where == "dispatched"
    assert stage.row.outcome is outcome
    assert stage.row.basis is (Basis.ESTIMATED if dispatched else Basis.NONE)
    assert (stage.row.charged_tokens, stage.row.status_code) == (ESTIMATE * dispatched, 499)


@pytest.mark.parametrize(
    ("error", "basis", "status"),
    [
        (UpstreamUnavailable(), Basis.NONE, 503),
        (InvalidCall(), Basis.NONE, 400),
        (UpstreamError(), Basis.ESTIMATED, 502),
        (RuntimeError(), Basis.ESTIMATED, 500),
    ],
)
async def test_an_error_before_the_first_byte_says_what_it_costs(
    autojump_clock, error, basis, status
):
    """Where upstream refused before any work nothing is charged, else the prompt."""
    stage = Stage(Player([]))
    with stage.live.hold(PRINCIPAL) as leash, pytest.raises(type(error)):
        async with opening(stage, leash):
            raise error
    assert (stage.row.outcome, stage.row.basis) == (Outcome.UPSTREAM_ERROR, basis)
    assert stage.row.status_code == status


async def test_leaving_waits_for_the_account_but_not_for_ever(autojump_clock):
    """While PostgreSQL is away the call ends after a limit; the hold carries the row meanwhile."""
    stage = Stage(Player([]), book=Book(stored=False))
    began = trio.current_time()
    with stage.live.hold(PRINCIPAL) as leash:
        async with opening(stage, leash) as admission:
            admission.finish(Outcome.COMPLETED)
    (hold,) = stage.counters.holds
    assert trio.current_time() == pytest.approx(began + SETTLE_LIMIT)
    assert (hold.phase, hold.final) == (FINAL, stage.row)
