"""How much of a batch's input may be in memory at once."""

from __future__ import annotations

import trio

ROOM = 32 * 1024 * 1024  # bytes; a call needs several times its line while it is read


class Room:
    """Bytes that one taker takes, and anybody gives back."""

    def __init__(self, most: int = ROOM) -> None:
        """Begin with all of it free."""
        self._most = self._free = most
        self._freed = trio.Event()

    async def take(self, size: int) -> int:
        """Wait for room, and return how much was taken: all there is, for what is larger."""
        wanted = min(size, self._most)
        while self._free < wanted:
            self._freed = trio.Event()
            await self._freed.wait()
        self._free -= wanted
        return wanted

    def give_back(self, taken: int) -> None:
        """Free what was taken."""
        self._free += taken
        self._freed.set()
