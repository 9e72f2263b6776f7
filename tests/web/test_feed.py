"""The feed of an upload: no faster than it is taken, and never in the way."""

import pytest
import trio
import trio.testing

from trio_gateway.core.errors import BodyTimeout
from trio_gateway.web.feed import Feed

LIMIT = 5.0


async def pieces(feed):
    """Take all there is."""
    found = []
    while piece := await feed.take():
        found.append(piece)
    return found


async def test_the_pieces_come_in_order_and_end(autojump_clock):
    """Empty ones are no end; the end stays the end."""
    feed = Feed(10, 100)

    async def put():
        for piece in (b"a", b"", b"b"):
            await feed.put(piece)
        feed.end()

    with trio.fail_after(LIMIT):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(put)
            assert await pieces(feed) == [b"a", b"b"]
        assert await feed.take() == b""


async def test_nothing_piles_up(autojump_clock):
    """A piece is handed over only when it is taken."""
    feed, handed = Feed(10, 100), []

    async def put():
        for piece in (b"a", b"b", b"c"):
            await feed.put(piece)
            handed.append(piece)

    with trio.fail_after(LIMIT):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(put)
            await trio.testing.wait_all_tasks_blocked()
            assert handed == []
            assert await feed.take() == b"a"
            await trio.testing.wait_all_tasks_blocked()
            assert handed == [b"a"]
            nursery.cancel_scope.cancel()


@pytest.mark.parametrize("waiting", [False, True])
async def test_what_nobody_takes_is_dropped(autojump_clock, waiting):
    """Put before the close, or after it."""
    feed = Feed(10, 100)
    with trio.fail_after(LIMIT):
        async with trio.open_nursery() as nursery:
            if waiting:
                nursery.start_soon(feed.put, b"a")
                await trio.testing.wait_all_tasks_blocked()
            feed.close()
            await feed.put(b"b")
            feed.end()


async def test_a_piece_and_the_whole_have_their_time(autojump_clock):
    """The whole ends too, however steadily the pieces come."""
    with pytest.raises(BodyTimeout):
        await Feed(10, 100).take()
    assert trio.current_time() == pytest.approx(10)
    feed, taken = Feed(10, 100), []

    async def put():
        while True:
            await trio.sleep(9)
            await feed.put(b"a")

    begun = trio.current_time()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(put)
        with pytest.raises(BodyTimeout):
            while True:
                taken.append(await feed.take())
        nursery.cancel_scope.cancel()
    assert len(taken) == 11
    assert trio.current_time() - begun == pytest.approx(100)
