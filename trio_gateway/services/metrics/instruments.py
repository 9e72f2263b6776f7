"""Every metric of a process, by name; their labels come from closed sets alone.

Names and buckets that begin with `gen_ai` are OpenTelemetry's for generative models. Of a live
gauge the scrape shows what the processes that are alive say: their sum, least or most.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from trio_gateway.core.domain import Basis

if TYPE_CHECKING:
    from collections.abc import Iterable

OPERATION, MODEL = "gen_ai_operation_name", "gen_ai_request_model"
PREFIX = "trio_gateway_"
MOST_NAMES = 50
DIRECTIONS = ("up", "down")  # of a file's bytes
LINE_ENDS = ("succeeded", "failed", "retried", "deferred")
BATCH_ENDS = ("completed", "failed", "expired", "cancelled")
CUTS = ("revoked", "no_longer_valid", "operator", "drain")
OTHER = "other"

DURATIONS = (0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92)
FIRST_TOKENS = (
    0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0,
)  # fmt: skip
OUTPUT_TOKENS = (0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5)
TOKENS = tuple(4**power for power in range(14))
WAITS = (0.001, 0.01, 0.1, 0.5, 1, 2, 5, 10, 30, 60, 120)
LAGS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5)
OVERHEADS = (0.0005, 0.001, 0.002, 0.003, 0.005, 0.0075, 0.01, 0.025, 0.05, 0.1, 0.25, 1)


class Children(dict[tuple[str, ...], Any]):
    """A family's children by their label values; each is looked up in the family once."""

    def __init__(self, family: Counter | Gauge | Histogram, known: Iterable[str] = ()) -> None:
        """Begin with those whose one label's value is known, at 0: so an increase is seen."""
        super().__init__()
        self._family = family
        for value in known:
            self[value,] = family.labels(value)

    def __missing__(self, values: tuple[str, ...]) -> Any:
        """Make the child, or find it."""
        child = self[values] = self._family.labels(*values)
        return child


class Names:
    """A label whose values are not known beforehand: so many, whatever comes later is `other`."""

    def __init__(self, known: set[str], most: int = MOST_NAMES) -> None:
        """Begin with those that are in use already."""
        self._known = known - {OTHER}
        self._most = most

    def __call__(self, name: str) -> str:
        """Return the value for a name."""
        if name not in self._known:
            if len(self._known) >= self._most:
                return OTHER
            self._known.add(name)
        return name


def live_gauge(registry: CollectorRegistry, name: str, text: str, mode: Any, *labels: str) -> Gauge:
    """Make a gauge that the scrape joins by `mode`, of the processes that are alive."""
    return Gauge(PREFIX + name, text, labels, registry=registry, multiprocess_mode="live" + mode)


class Instruments:
    """The families, each under a short name of its own."""

    def __init__(self) -> None:
        """Make them, where `settle_in` has said; once in the life of a place."""
        self.registry = CollectorRegistry()
        self._calls()
        self._requests()
        self._accounts()
        self._batches()
        self._processes()

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(PREFIX + name, text, labels, registry=self.registry)

    def _gauge(self, name: str, text: str, mode: Any, *labels: str) -> Gauge:
        return live_gauge(self.registry, name, text, mode, *labels)

    def _histogram(
        self, name: str, text: str, buckets: tuple[float, ...], *labels: str
    ) -> Histogram:
        return Histogram(name, text, labels, registry=self.registry, buckets=buckets)

    def _calls(self) -> None:
        both = (OPERATION, MODEL)
        self.duration = Children(
            self._histogram(
                "gen_ai_server_request_duration_seconds",
                "From a call's arrival to its answer's last byte, for admitted calls.",
                DURATIONS,
                *both,
            )
        )
        self.first_token = Children(
            self._histogram(
                "gen_ai_server_time_to_first_token_seconds",
                "From a call's arrival to the first bytes from the model.",
                FIRST_TOKENS,
                *both,
            )
        )
        self.output_token = Children(
            self._histogram(
                "gen_ai_server_time_per_output_token_seconds",
                "Between two tokens after the first, on average over a completed call.",
                OUTPUT_TOKENS,
                *both,
            )
        )
        self.tokens = Children(
            self._histogram(
                "gen_ai_client_token_usage",
                "Tokens of a dispatched call, as in its ledger row.",
                TOKENS,
                *both,
                "gen_ai_token_type",
            )
        )

    def _requests(self) -> None:
        self.calls = Children(
            self._counter("calls", "Admitted calls.", "endpoint", "outcome", "basis")
        )
        self.refusals = Children(
            self._counter("refusals", "Requests answered with an error, by its code.", "code")
        )
        self.overhead = self._histogram(
            PREFIX + "overhead_seconds",
            "What the gateway adds before a model is asked, without waiting for body or slot.",
            OVERHEADS,
        )
        self.queue_wait = self._histogram(
            PREFIX + "queue_wait_seconds", "Admitted calls' wait for a slot.", WAITS
        )
        self.upstream = Children(
            self._counter("upstream_calls", "Calls sent to a backend.", "backend", "outcome")
        )
        self.file_bytes = Children(
            self._counter("file_bytes", "Bytes of files taken in and given out.", "direction"),
            DIRECTIONS,
        )

    def _accounts(self) -> None:
        self.settle_lag = self._histogram(
            PREFIX + "settle_lag_seconds",
            "From an answer's last byte to its row stored and its hold settled.",
            LAGS,
        )
        self.charged = Children(
            self._counter("charged_tokens", "Weighted tokens charged to settled calls.", "basis"),
            [basis.value for basis in Basis if basis is not Basis.NONE],
        )
        self.swept = self._counter(
            "holds_swept", "Holds of dead workers settled by a sweep, at least."
        )
        self.holds = self._gauge("holds_open", "Holds in Redis at the last sweep.", "max")
        self.notices = Children(
            self._counter(
                "budget_notices", "Budgets that passed a threshold, in percent.", "threshold"
            )
        )
        self.revocation_lag = self._histogram(
            PREFIX + "revocation_lag_seconds",
            "From a key's revocation in the database until a worker had cut its calls.",
            LAGS,
        )
        self.cut = Children(
            self._counter("calls_cut", "Calls ended before their time.", "reason"), CUTS
        )

    def _batches(self) -> None:
        self.lines = Children(
            self._counter("batch_lines", "Runs of batch lines that ended.", "outcome"), LINE_ENDS
        )
        self.batches = Children(
            self._counter("batches_ended", "Batches that ended.", "status"), BATCH_ENDS
        )

    def _processes(self) -> None:
        self.build = Children(self._gauge("build_info", "1.", "max", "version", "python"))
        self.restarts = self._counter("process_restarts", "Processes started again.")
        self.drains = self._counter("drains", "Drains begun.")
