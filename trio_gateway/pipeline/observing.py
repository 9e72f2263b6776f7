"""The one place that looks at a call when it is over: its metrics, and its spans if wanted."""

from __future__ import annotations

import os
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Protocol

import structlog
import trio

from trio_gateway.services.metrics.metrics import open_metrics
from trio_gateway.services.traces.wish import read_wish

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping, Sequence

    from trio_gateway.core.timeline import Timeline
    from trio_gateway.services.metrics.metrics import Metrics

log = structlog.get_logger()


class Tracing(Protocol):
    """Whoever makes spans."""

    def ended(self, timeline: Timeline, now: float) -> None:
        """Take a call that is over."""

    async def close(self) -> None:
        """Send what is left, in bounded time."""


class Observer:
    """Called once for each call, at its end; what goes wrong here never ends a call."""

    def __init__(self, metrics: Metrics, tracing: Tracing | None = None) -> None:
        """Without `tracing` nothing is done for spans."""
        self.metrics = metrics
        self.tracing = tracing

    def __call__(self, timeline: Timeline) -> None:
        """Observe a call: carried, or refused before that."""
        now = trio.current_time()
        try:
            if timeline.row is not None:
                self.metrics.ended(timeline, now)
            if self.tracing is not None and timeline.endpoint:
                self.tracing.ended(timeline, now)
        except Exception:
            log.exception("observation_failed")


@asynccontextmanager
async def open_observer(
    backends: Sequence[str], environ: Mapping[str, str] = os.environ
) -> AsyncIterator[Observer]:
    """Lend what observes this process's calls; at the end the last spans are sent."""
    with open_metrics(backends, environ) as metrics:
        tracing = _tracing(environ)
        try:
            yield Observer(metrics, tracing)
        finally:
            if tracing is not None:
                await tracing.close()  # noqa: ASYNC102 - shielded and bounded inside


def _tracing(environ: Mapping[str, str]) -> Tracing | None:
    """Begin to trace, if the environment asks for it; serving goes first where that fails."""
    wish = read_wish(environ)
    if not wish.wanted:
        return None
    if wish.obstacle:
        log.error("traces_off", reason=wish.obstacle)
        return None
    from trio_gateway.services.traces.tracer import (  # noqa: PLC0415 - costs memory and time
        Tracer,
    )

    return Tracer(environ)
