"""What a process counts: one verb for each thing that can happen, and the sample of its state."""

from __future__ import annotations

import os
import platform
from contextlib import contextmanager
from typing import TYPE_CHECKING

from trio_gateway import __version__
from trio_gateway.core.domain import Basis, Outcome
from trio_gateway.services.metrics.instruments import MODEL, Instruments, Names
from trio_gateway.services.metrics.merging import Merged
from trio_gateway.services.metrics.place import settle_in
from trio_gateway.services.metrics.state import State, labels_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from prometheus_client import CollectorRegistry

    from trio_gateway.core.domain import LedgerRow
    from trio_gateway.core.timeline import Timeline
    from trio_gateway.services.metrics.place import Place
    from trio_gateway.services.metrics.state import Sample

ANSWERED = (Outcome.COMPLETED, Outcome.CUT)
FAULTS = (
    "internal_error",
    "overloaded",
    "shutting_down",
    "store_unavailable",
    "upstream_error",
    "upstream_timeout",
    "upstream_unavailable",
)
THRESHOLDS = (80, 100)  # percent of a budget


class Metrics:
    """The numbers of one process. Nothing here waits; a caller's words are never a label."""

    def __init__(self, backends: Sequence[str] = (), place: Place | None = None) -> None:
        """Take the URLs of the backends, which are labelled by host; see `open_metrics`."""
        self.place = place
        self.merged = Merged(place.folder) if place else None
        self._of = Instruments()
        self._models = Names(place.labels(MODEL) if place else set())
        self._codes = Names(place.labels("code") if place else set())
        self._backends = labels_of(backends)
        self._state: State | None = None
        self._of.build[__version__, platform.python_version()].set(1)
        if place and place.again:
            self._of.restarts.inc()
        # An increase is seen only from a count that was there before.
        for threshold in THRESHOLDS:
            self._of.notices[(str(threshold),)].inc(0)
        for code in FAULTS:
            self._of.refusals[(self._codes(code),)].inc(0)

    @property
    def registry(self) -> CollectorRegistry:
        """The families of this process, for whoever shows them."""
        return self._of.registry

    def ended(self, timeline: Timeline, now: float) -> None:
        """Observe an admitted call at its end, by the clock of its stamps."""
        row, of = timeline.row, self._of
        if row is None:
            return
        of.calls[row.endpoint, row.outcome, row.basis].inc()
        if row.backend is not None:
            of.upstream[self._backends.get(row.backend, "other"), row.outcome].inc()
        both = timeline.operation, self._models(row.model)
        if (end := timeline.last_byte) is not None:
            of.duration[both].observe(end - timeline.arrived)
            of.settle_lag.observe((timeline.settled or now) - end)
        self._observe_start(timeline)
        if row.basis is not Basis.NONE:
            self._observe_tokens(both, timeline, row)

    def _observe_start(self, timeline: Timeline) -> None:
        reserved, granted = timeline.reserved, timeline.granted
        if reserved is None or granted is None:
            return
        wait = max(0.0, granted - reserved)
        self._of.queue_wait.observe(wait)
        if timeline.dispatched is not None and not timeline.batch:
            body = (timeline.received or 0.0) - (timeline.authenticated or 0.0)
            self._of.overhead.observe(
                timeline.dispatched - timeline.arrived - wait - max(0.0, body)
            )

    def _observe_tokens(self, both: tuple[str, str], timeline: Timeline, row: LedgerRow) -> None:
        of, generates = self._of, both[0] != "embeddings"
        of.charged[(row.basis,)].inc(row.charged_tokens)
        of.tokens[(*both, "input")].observe(row.prompt_tokens)
        first = timeline.first_byte
        if first is None or not generates:
            return
        of.tokens[(*both, "output")].observe(row.completion_tokens)
        of.first_token[both].observe(first - timeline.arrived)
        last, more = timeline.last_byte, row.completion_tokens - 1
        if last is not None and more > 0 and row.outcome in ANSWERED:
            of.output_token[both].observe((last - first) / more)

    def refused(self, code: str) -> None:
        """Count a request that was answered with an error."""
        self._of.refusals[(self._codes(code),)].inc()

    def swept(self, open_holds: int, settled: int) -> None:
        """Note what a sweep has found in Redis, and how much of that it settled."""
        self._of.holds.set(open_holds)
        if settled:
            self._of.swept.inc(settled)

    def revoked(self, lag: float) -> None:
        """Observe how many seconds a revocation took to get here."""
        self._of.revocation_lag.observe(lag)

    def cut(self, reason: str, calls: int) -> None:
        """Count calls that were cut; `reason` is a word of this code."""
        if calls:
            self._of.cut[(reason,)].inc(calls)

    def budget_notice(self, threshold: int) -> None:
        """Count a budget that passed so many percent, of THRESHOLDS."""
        self._of.notices[(str(threshold),)].inc()

    def line_ended(self, outcome: str) -> None:
        """Count a run of a batch line: `succeeded`, `failed`, `retried` or `deferred`."""
        self._of.lines[(outcome,)].inc()

    def batch_ended(self, status: str) -> None:
        """Count a batch that ended."""
        self._of.batches[(status,)].inc()

    def moved_bytes(self, direction: str, size: int) -> None:
        """Count the bytes of a file that went `up` or `down`."""
        self._of.file_bytes[(direction,)].inc(size)

    def drain_begun(self) -> None:
        """Count a drain."""
        self._of.drains.inc()

    def sample(self, now: Sample) -> None:
        """Show a worker's state; a process that never does has none."""
        if self._state is None:
            self._state = State(self._of.registry, self._backends)
        self._state.show(now)


@contextmanager
def open_metrics(
    backends: Sequence[str] = (), environ: Mapping[str, str] = os.environ
) -> Iterator[Metrics]:
    """Lend this process's metrics; one at a time, as they share its place."""
    place = settle_in(environ)
    try:
        yield Metrics(backends, place)
    finally:
        if place is not None:
            place.close()
