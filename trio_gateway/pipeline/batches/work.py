"""What the parts of the engine hand to each other."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import trio

if TYPE_CHECKING:
    from collections.abc import Callable

    from trio_gateway.pipeline.gate import Gate
    from trio_gateway.services.batches.lines import Claim, LeasedLine, Lines
    from trio_gateway.services.live import Leash, Live
    from trio_gateway.services.tenants import Tenants


def _unheard() -> None:
    """Tell nobody."""


@dataclass(frozen=True, slots=True)
class Bench:
    """The services that a line of a batch passes."""

    gate: Gate
    tenants: Tenants
    live: Live
    lines: Lines
    attempts: int  # after so many failed ones a line is given up


@dataclass(eq=False, slots=True)
class Flight:
    """One line to run: `text` is the line as it stands in the file, None where it is gone."""

    claim: Claim
    line: LeasedLine
    text: bytes | None
    room: int = 0  # bytes, to be given back
    leash: Leash | None = None  # while it is under way
    landed: Callable[[], object] = _unheard  # told once it needs the GPU no more
    scope: trio.CancelScope = field(default_factory=trio.CancelScope)

    def abort(self) -> None:
        """End it wherever it stands; to its account that is a client that left."""
        if self.leash is not None:
            self.leash.client_left = True
        self.scope.cancel()


@dataclass(frozen=True, slots=True)
class Later:
    """A line that has to be run again, after `delay` seconds.

    `failed` counts the attempt; `rest` keeps the whole batch waiting for so many seconds, and
    `paused` is what its object says meanwhile.
    """

    delay: float = 0.0
    failed: bool = False
    rest: float = 0.0
    paused: str | None = None
