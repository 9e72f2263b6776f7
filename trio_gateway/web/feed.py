"""The body of an upload, handed over piece by piece and no faster than it is taken.

A slow taker holds back the connection, and through it the client; nothing piles up here.
"""

from __future__ import annotations

import trio

from trio_gateway.core.errors import BodyTimeout


class Feed:
    """Between the connection, which puts, and one handler, which takes."""

    def __init__(self, idle: float, total: float) -> None:
        """`idle` is how long a piece may take to come, `total` all of them, in seconds."""
        self._idle = idle
        self._end = trio.current_time() + total
        self._put, self._take = trio.open_memory_channel[bytes](0)

    async def put(self, piece: bytes) -> None:
        """Hand a piece over; once nobody takes any more, it is dropped."""
        if piece:
            try:
                await self._put.send(piece)
            except trio.BrokenResourceError:
                return

    def end(self) -> None:
        """Say that the body is complete."""
        self._put.close()

    async def take(self) -> bytes:
        """Return the next piece, b"" at the end of the body. Raises BodyTimeout."""
        with trio.move_on_at(min(trio.current_time() + self._idle, self._end)):
            try:
                return await self._take.receive()
            except trio.EndOfChannel:
                return b""
        raise BodyTimeout

    def close(self) -> None:
        """Take no more: whatever comes is dropped."""
        self._take.close()
