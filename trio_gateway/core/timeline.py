"""When one call passed what: written while it runs, read once at its end."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from trio_gateway.core.domain import LedgerRow

# In OpenTelemetry's words for generative models.
OPERATIONS = {
    "/v1/chat/completions": "chat",
    "/api/chat": "chat",
    "/v1/completions": "text_completion",
    "/api/generate": "text_completion",
    "/v1/embeddings": "embeddings",
    "/api/embed": "embeddings",
    "/api/embeddings": "embeddings",
}
# Each phase lasts from whatever was passed before to the stamp behind its name. `closed` ends
# whichever was under way: where that is not the stream, the phase broke off.
PHASES = (
    ("authenticate", "authenticated"),
    ("parse", "parsed"),
    ("admit", "reserved"),
    ("queue", "dispatched"),
    ("first_byte", "first_byte"),
    ("stream", "closed"),
    ("settle", "settled"),
)


@dataclass(slots=True)
class Timeline:
    """Stamps are seconds of one monotonic clock, None for what was not passed.

    `row` is there once the call was admitted and has ended. `endpoint` and `model` are names
    from closed sets, "" as long as they are not known to be; `error` is a code of ours.
    """

    arrived: float
    authenticated: float | None = None
    received: float | None = None  # the body is there
    parsed: float | None = None
    reserved: float | None = None
    granted: float | None = None  # a slot is in hand
    dispatched: float | None = None
    first_byte: float | None = None
    last_byte: float | None = None  # the answer's last piece was handed on
    closed: float | None = None  # upstream needs no GPU for this any more
    settled: float | None = None
    request_id: str = ""  # of a request that is traced
    endpoint: str = ""
    model: str = ""
    batch: bool = False
    carried: bool = False  # whoever carries the call sees to the end of this, too
    status: int = 0  # of the answer, where there is no row
    error: str = ""
    row: LedgerRow | None = None
    parent: bytes = b""  # a traceparent header, as it came

    @property
    def operation(self) -> str:
        """What is asked for: `chat`, `text_completion` or `embeddings`."""
        return OPERATIONS[self.endpoint]

    def end(self, now: float) -> None:
        """Say that the answer is over, however it came to that."""
        self.closed = now if self.closed is None else self.closed
        self.last_byte = now if self.last_byte is None else self.last_byte

    def phases(self, end: float) -> list[tuple[str, float, float, bool]]:
        """Return each phase begun by `end`: its name, its two ends, and whether it was finished.

        They follow each other without a gap.
        """
        passed = [
            (stamp, name) for name, field in PHASES if (stamp := getattr(self, field)) is not None
        ]
        if self.settled is None:
            passed.append((end, "settle" if self.closed is not None else ""))
        ahead = [name for name, _ in PHASES]
        found = []
        since = self.arrived
        for stamp, ending in sorted(passed, key=lambda one: one[0]):
            name = ahead[0] if ending in {"stream", ""} else ending
            ahead.remove(name)
            complete = name == ending and not (name == "settle" and self.settled is None)
            found.append((name, since, max(since, stamp), complete))
            since = max(since, stamp)
        return found
