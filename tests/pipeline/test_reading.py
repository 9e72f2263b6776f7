"""Where bodies are read."""

from __future__ import annotations

import threading

import pytest
import trio

from trio_gateway.core.errors import InvalidCall
from trio_gateway.pipeline.reading import read_apart


async def test_the_loop_goes_on_while_a_body_is_read():
    """What is read waits for the loop here, which it could not if it held the loop up."""
    gone_on = threading.Event()

    def read(body: bytes) -> bytes:
        assert gone_on.wait(60)
        return body.upper()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.to_thread.run_sync, lambda: None)  # others have threads of theirs
        nursery.start_soon(_tell, gone_on)
        assert await read_apart(read, b"body") == b"BODY"


async def _tell(event: threading.Event) -> None:
    await trio.lowlevel.checkpoint()
    event.set()


async def test_a_refusal_comes_out_of_the_thread():
    """Whoever asked hears what is wrong with the body."""

    def read(_: bytes) -> bytes:
        raise InvalidCall("no", param="model")

    with pytest.raises(InvalidCall) as caught:
        await read_apart(read, b"")
    assert caught.value.param == "model"


async def test_one_body_is_read_at_a_time_and_a_wait_can_be_given_up():
    """A second one waits for the first, and leaves no trace when it no longer wants to."""
    going, reading = threading.Event(), trio.Event()
    token, seen = trio.lowlevel.current_trio_token(), []

    def hold(body: bytes) -> bytes:
        token.run_sync_soon(reading.set)
        assert going.wait(60)
        seen.append(body)
        return body

    def read(body: bytes) -> bytes:
        seen.append(body)
        return body

    async with trio.open_nursery() as nursery:
        nursery.start_soon(read_apart, hold, b"first")
        await reading.wait()
        async with trio.open_nursery() as waiting:
            waiting.start_soon(read_apart, read, b"given up")
            await trio.testing.wait_all_tasks_blocked()
            waiting.cancel_scope.cancel()
        nursery.start_soon(read_apart, read, b"second")
        await trio.testing.wait_all_tasks_blocked()
        assert seen == []
        going.set()
    assert seen == [b"first", b"second"]
