"""What a worker is doing just now, as gauges.

They are made with the first sample: a process that is no worker, or not one yet, must not say
that its listener is down.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from trio_gateway.services.metrics.instruments import OTHER, Children, live_gauge

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from prometheus_client import CollectorRegistry, Gauge


@dataclass(frozen=True, slots=True)
class BackendState:
    """A backend as one worker sees it; `age` of its models in seconds."""

    in_flight: int
    slots: int
    up: bool
    models: int
    age: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """A worker's state at one moment; backends by URL."""

    live: int
    waiting: Mapping[str, int]  # by priority
    backlog: int
    waited: float  # seconds, of the oldest in the backlog
    unsettled: int
    audit: int
    listening: bool
    informed: bool  # keys can be proven
    redis: bool
    draining: bool
    backends: Mapping[str, BackendState] = field(default_factory=dict)


class State:
    """The gauges of one worker."""

    def __init__(self, registry: CollectorRegistry, backends: Mapping[str, str]) -> None:
        """Take the labels of the backends, by URL."""
        self._registry = registry
        self._backends = backends
        self._own()
        self._stores()
        self._upstream()

    def _gauge(self, name: str, text: str, mode: str, *labels: str) -> Gauge:
        return live_gauge(self._registry, name, text, mode, *labels)

    def _own(self) -> None:
        self._workers = self._gauge("workers", "Worker processes that are alive.", "sum")
        self._sampled = self._gauge(
            "sampled_timestamp_seconds", "When the slowest worker last looked at itself.", "min"
        )
        self._live = self._gauge("live_calls", "Requests and batch lines under way.", "sum")
        self._draining = self._gauge("draining", "Workers that drain.", "sum")
        self._waiting = Children(
            self._gauge("queue_depth", "Calls waiting for a slot.", "sum", "priority")
        )

    def _stores(self) -> None:
        self._backlog = self._gauge("ledger_backlog", "Ledger rows waiting to be stored.", "sum")
        self._waited = self._gauge(
            "ledger_wait_seconds", "Since when the oldest of these rows waits.", "max"
        )
        self._unsettled = self._gauge(
            "settles_waiting", "Settles and doubts that wait for Redis.", "sum"
        )
        self._audit = self._gauge("audit_queue", "Refusals waiting to be written.", "sum")
        self._listener = self._gauge("listener_up", "1 while changes of keys are heard.", "min")
        self._redis = self._gauge("redis_connected", "1 while Redis is connected.", "min")
        self._limiter = self._gauge(
            "limiter_admitting", "0 while every call is refused for want of a store.", "min"
        )

    def _upstream(self) -> None:
        def per_backend(name: str, text: str, mode: str) -> Children:
            return Children(self._gauge(name, text, mode, "backend"))

        self._in_flight = per_backend("backend_in_flight", "Slots of a backend taken.", "sum")
        self._slots = per_backend("backend_slots", "Slots of a backend in all.", "sum")
        self._up = per_backend(
            "backend_up", "0 while a backend rests after refused connections.", "min"
        )
        self._models = per_backend("catalog_models", "Models known of a backend.", "min")
        self._age = per_backend(
            "catalog_age_seconds", "Since the models of a backend were last seen.", "max"
        )

    def show(self, now: Sample) -> None:
        """Set every gauge."""
        self._workers.set(1)
        self._sampled.set(time.time())
        self._live.set(now.live)
        self._draining.set(now.draining)
        for priority, waiting in now.waiting.items():
            self._waiting[(priority,)].set(waiting)
        self._backlog.set(now.backlog)
        self._waited.set(now.waited)
        self._unsettled.set(now.unsettled)
        self._audit.set(now.audit)
        self._listener.set(now.listening)
        self._redis.set(now.redis)
        self._limiter.set(now.informed and now.redis)
        for url, backend in now.backends.items():
            self._show_backend(self._backends.get(url, OTHER), backend)

    def _show_backend(self, label: str, state: BackendState) -> None:
        shown: list[tuple[Children, Any]] = [
            (self._in_flight, state.in_flight),
            (self._slots, state.slots),
            (self._up, state.up),
            (self._models, state.models),
            (self._age, state.age),
        ]
        for gauges, value in shown:
            gauges[(label,)].set(value)


def labels_of(urls: Sequence[str]) -> dict[str, str]:
    """Name each backend by its host, without a password; twins are numbered."""
    labels: dict[str, str] = {}
    for url in urls:
        label = name = urlsplit(url).netloc.rpartition("@")[2]
        number = 1
        while label in labels.values():
            number += 1
            label = f"{name}#{number}"
        labels[url] = label
    return labels
