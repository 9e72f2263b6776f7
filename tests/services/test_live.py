"""Leashes: every call can be ended by its key, wherever it waits, and nobody else's is."""

from __future__ import annotations

import pytest
import trio
import trio.testing

from trio_gateway.core.domain import ApiKey, Principal, Tenant
from trio_gateway.core.errors import (
    ClientStalled,
    ShuttingDown,
    StoreUnavailable,
    Unauthenticated,
    UpstreamTimeout,
)
from trio_gateway.services.live import Live


def principal(key="key_a", tenant="ten_a"):
    """Make a caller."""
    return Principal(Tenant(tenant, tenant), ApiKey(key, "public", tenant_id=tenant))


async def test_a_cut_raises_its_reason_wherever_the_call_waits():
    """The block ends at its checkpoint, with the error that the cut carried."""
    live = Live()
    with live.hold(principal()) as leash:
        async with trio.open_nursery() as nursery:

            async def wait():
                with pytest.raises(Unauthenticated), leash.cover():
                    await trio.sleep_forever()

            nursery.start_soon(wait)
            await trio.testing.wait_all_tasks_blocked()
            assert live.cut(["key_a"], Unauthenticated) == 1


async def test_a_block_entered_after_the_cut_ends_at_once():
    """A call that was cut between two blocks does not get through the next."""
    live = Live()
    with live.hold(principal()) as leash:
        live.cut(["key_a"], Unauthenticated)
        with pytest.raises(Unauthenticated), leash.cover():
            await trio.sleep_forever()
        with pytest.raises(Unauthenticated):
            leash.fail_if_cut()


def test_the_first_cut_wins():
    """What the caller hears does not change because something else happened later."""
    live = Live()
    with live.hold(principal()) as leash:
        live.cut(["key_a"], Unauthenticated)
        live.cut(["key_a"], ShuttingDown)
        assert isinstance(leash.reason, Unauthenticated)


def test_only_the_named_keys_calls_are_cut():
    """All calls of a key, none of its neighbor's, and unknown keys are no error."""
    live = Live()
    with (
        live.hold(principal("a")) as first,
        live.hold(principal("a")) as second,
        live.hold(principal("b")) as other,
    ):
        assert live.cut(["a", "unknown"], Unauthenticated) == 2
        assert first.reason is not None
        assert second.reason is not None
        assert other.reason is None


def test_every_call_has_an_error_of_its_own():
    """One exception object raised in two tasks would mix their tracebacks."""
    live = Live()
    with live.hold(principal()) as first, live.hold(principal()) as second:
        live.cut(["key_a"], Unauthenticated)
        assert first.reason is not second.reason


async def test_what_is_live_is_known_by_key_and_by_tenant():
    """A call is listed from its hold to its end."""
    live = Live()
    assert (len(live), live.keys()) == (0, set())
    with live.hold(principal("a", "one")), live.hold(principal("b", "two")):
        with live.hold(principal("a", "one")):
            assert len(live) == 3
        assert (len(live), live.keys()) == (2, {"a", "b"})
        assert (live.keys_of("one"), live.keys_of("three")) == ({"a"}, set())
    assert (len(live), live.keys_of("one")) == (0, set())


async def test_ended_waits_for_the_last_call():
    """It returns at once where there is none, and not between two."""
    live = Live()
    with trio.fail_after(10):
        await live.ended()
    seen = []
    async with trio.open_nursery() as nursery:

        async def wait():
            await live.ended()
            seen.append("ended")

        with live.hold(principal("a")):
            nursery.start_soon(wait)
            await trio.testing.wait_all_tasks_blocked()
            with live.hold(principal("b")):
                await trio.testing.wait_all_tasks_blocked()
            await trio.testing.wait_all_tasks_blocked()
            assert seen == []
    assert seen == ["ended"]


async def test_the_deadline_of_a_block_is_a_timeout(autojump_clock):
    """It is no cut: the leash has no reason, and the next block is free."""
    live = Live()
    with live.hold(principal()) as leash:
        with pytest.raises(UpstreamTimeout), leash.cover(trio.current_time() + 5):
            await trio.sleep_forever()
        assert (trio.current_time(), leash.reason) == (5, None)
        with leash.cover():
            await trio.lowlevel.checkpoint()


async def test_what_is_waited_for_moves_the_deadline_and_names_the_error(autojump_clock):
    """Each wait has its own limit, up to a tenth late; the block's own end stays."""
    live = Live()
    with live.hold(principal()) as leash:
        with pytest.raises(ClientStalled), leash.cover(1000) as cover:
            for _ in range(5):
                cover.allow(10)
                await trio.sleep(9)
            cover.allow(10, ClientStalled)
            await trio.sleep_forever()
        assert 45 + 10 <= trio.current_time() <= 45 + 11
        with pytest.raises(UpstreamTimeout), leash.cover(trio.current_time() + 5) as cover:
            cover.allow(10, ClientStalled)
            await trio.sleep_forever()


async def test_a_released_block_cannot_fail(autojump_clock):
    """Its work is done: neither a cut nor its deadline says otherwise, and nothing prolongs it."""
    live = Live()
    with live.hold(principal()) as leash:
        with leash.cover(1000) as cover:
            cover.release(2)
            cover.allow(60)
            live.cut(["key_a"], StoreUnavailable)
            await trio.sleep_forever()
        assert trio.current_time() == 2


async def test_a_block_left_in_time_is_off_the_leash():
    """A later cut does not reach back."""
    live = Live()
    with live.hold(principal()) as leash:
        with leash.cover():
            await trio.lowlevel.checkpoint()
        live.cut(["key_a"], Unauthenticated)
        await trio.lowlevel.checkpoint()


async def test_a_cancel_from_outside_passes_through():
    """A leash ends what it was told to, and swallows nobody else's cancel."""
    live = Live()
    with live.hold(principal()) as leash, trio.CancelScope() as outer:
        outer.cancel()
        with leash.cover():
            await trio.sleep_forever()
    assert outer.cancelled_caught
    assert leash.reason is None
