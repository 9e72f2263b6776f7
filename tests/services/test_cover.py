"""A cover: one block, its cuts, and the deadline that moves with what is waited for."""

from __future__ import annotations

from typing import Any

import pytest
import trio

from trio_gateway.core.errors import ClientStalled, Unauthenticated, UpstreamTimeout
from trio_gateway.services.live import Leash

NOBODY: Any = None


async def test_a_wait_longer_than_allowed_ends_the_block(autojump_clock):
    """The error is the one that was named for this wait, and it comes within a tenth."""
    began = trio.current_time()
    with pytest.raises(ClientStalled), Leash(NOBODY).cover(began + 100) as cover:
        cover.allow(30)
        await trio.sleep(29)
        cover.allow(10, ClientStalled)
        await trio.sleep_forever()
    assert 39 <= trio.current_time() - began <= 40.001


async def test_waits_within_what_is_allowed_may_follow_each_other_for_ever(autojump_clock):
    """Each has its own time, however long all of them take."""
    with Leash(NOBODY).cover() as cover:
        for _ in range(100):
            cover.allow(10)
            await trio.sleep(9.9)


async def test_no_wait_outlasts_the_blocks_own_end(autojump_clock):
    """Past it the error is the timeout of the call, whoever was being waited for."""
    began = trio.current_time()
    with pytest.raises(UpstreamTimeout), Leash(NOBODY).cover(began + 5) as cover:
        cover.allow(30, ClientStalled)
        await trio.sleep_forever()
    assert trio.current_time() - began == pytest.approx(5)


async def test_a_cut_ends_every_block_at_once_and_every_later_one(autojump_clock):
    """The first reason is the one that is heard."""
    leash = Leash(NOBODY)
    for _ in range(2):
        with trio.fail_after(1), pytest.raises(Unauthenticated), leash.cover() as cover:
            cover.allow(10)
            leash.cut(Unauthenticated())
            leash.cut(ClientStalled())
            await trio.sleep_forever()
    with pytest.raises(Unauthenticated):
        leash.fail_if_cut()


async def test_a_released_block_ends_in_time_and_never_fails(autojump_clock):
    """Its work is done: neither the clock nor a cut makes an error of the rest."""
    leash = Leash(NOBODY)
    began = trio.current_time()
    with leash.cover(began + 100) as cover:
        cover.release(2)
        leash.cut(Unauthenticated())
        await trio.sleep_forever()
    assert trio.current_time() - began == pytest.approx(2)
