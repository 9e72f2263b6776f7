"""The body of a streamed reply, as its script wants it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio

from trio_gateway.simulator import wire
from trio_gateway.simulator.reply import Piece

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable

    from trio_gateway.simulator.frames import Frames
    from trio_gateway.simulator.reply import Reply
    from trio_gateway.simulator.script import Script
    from trio_gateway.simulator.state import Generation, Simulation

WRITE = 64 * 1024
FLOOD = Piece(content="flood ", tokens=["flood "])
DEFAULT_ERROR = "an error was encountered while running the model: unexpected EOF"


class Died(ConnectionResetError):
    """Raised out of the app where a script breaks the connection."""


class Stream:
    """Iterates over the writes of one reply, and notes them in its generation."""

    def __init__(
        self, sim: Simulation, generation: Generation, script: Script, reply: Reply, frames: Frames
    ) -> None:
        """Take what the body is made of."""
        self._sim = sim
        self._generation = generation
        self._script = script
        self._reply = reply
        self._frames = frames

    async def writes(self) -> AsyncIterator[bytes]:
        """Yield the body, or raise Died; without a gap in writes of about 64 KiB."""
        script = self._script
        if script.flood:
            line = self._frames.line(FLOOD)
            lines = 1 if script.token_gap else WRITE // len(line)
            while True:
                for part in self._parts(line * lines, lines):
                    yield part
                # In process a send never waits, and a flood would never be cancelled.
                await trio.sleep(script.token_gap)
        waiting, size, tokens = [], 0, 0
        for piece in self._pieces():
            line = self._frames.line(piece)
            waiting.append(line)
            size += len(line)
            tokens += len(piece.tokens)
            if script.token_gap or script.held or size >= WRITE:
                for part in self._parts(b"".join(waiting), tokens):
                    yield part
                await trio.sleep(script.token_gap)
                waiting, size, tokens = [], 0, 0
        await self._hold()
        waiting.append(self._last())
        for part in self._parts(b"".join(waiting), tokens):
            yield part
        if script.ending == "die":
            raise Died("the script ends here")

    async def _hold(self) -> None:
        if self._script.held:
            await self._sim.replaced(self._script)

    def _pieces(self) -> Iterable[Piece]:
        pieces = self._reply.pieces
        return pieces if self._script.ending == "done" else pieces[: self._script.after]

    def _last(self) -> bytes:
        script, generation = self._script, self._generation
        # Before the last write: with it the model's work is over, whether it is read or not.
        generation.outcome = "done" if script.ending == "done" else "failed"
        if script.ending == "done":
            generation.tokens += len(self._reply.calls)
            return self._frames.final_line()
        if script.ending == "error":
            return wire.encode({"error": script.error_text or DEFAULT_ERROR}) + b"\n"
        return b'{"model": no JSON\n' if script.ending == "garbage" else b""

    def _parts(self, data: bytes, tokens: int) -> Iterable[bytes]:
        if data:
            self._generation.tokens += tokens
            self._sim.notice()
        # A huge line goes out in pieces, so that its writer can be seen to stall.
        for start in range(0, len(data), WRITE):
            yield data[start : start + WRITE]
