"""Spans, built from a call's stamps when the call is over, and sent by a thread of their own.

Imported only where traces are wanted. A call has one root span and one span for each phase. A
request whose key was not proven has none, or anybody could have spans made and stored.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import structlog
import trio
from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import (
    NonRecordingSpan,
    SpanContext,
    SpanKind,
    Status,
    StatusCode,
    TraceFlags,
    set_span_in_context,
)

from trio_gateway import __version__
from trio_gateway.services.traces.traceparent import parse_traceparent

if TYPE_CHECKING:
    from collections.abc import Mapping

    from opentelemetry.trace import Span
    from opentelemetry.util.types import AttributeValue

    from trio_gateway.core.timeline import Timeline

log = structlog.get_logger()

NAME = "trio-gateway"
FLUSH_LIMIT = 3.0  # seconds, at the end of the process
KINDS = {"first_byte": SpanKind.CLIENT}


@dataclass(frozen=True, slots=True)
class _Clock:
    """Turns stamps of the monotonic clock into the time of day."""

    stamp: float
    nanoseconds: int

    def at(self, stamp: float) -> int:
        return self.nanoseconds - int((self.stamp - stamp) * 1e9)


class Tracer:
    """Makes spans and hands them to the exporter, whose queue is bounded: what is too much goes."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        """Start the exporter's thread; it reads OpenTelemetry's variables by itself."""
        named = environ.get("OTEL_SERVICE_NAME") or "service.name=" in environ.get(
            "OTEL_RESOURCE_ATTRIBUTES", ""
        )
        resource = {"service.version": __version__} | ({} if named else {"service.name": NAME})
        self._provider = TracerProvider(resource=Resource.create(resource), shutdown_on_exit=False)
        self._provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
        self._tracer = self._provider.get_tracer(NAME, __version__)

    def ended(self, timeline: Timeline, now: float) -> None:
        """Make the spans of a call that is over; `now` is on the clock of its stamps."""
        if timeline.authenticated is None:
            return
        clock = _Clock(now, time.time_ns())
        end = timeline.settled or now
        root = self._tracer.start_span(
            f"{timeline.operation} {timeline.model}".rstrip(),
            context=_context_of(timeline),
            kind=SpanKind.CONSUMER if timeline.batch else SpanKind.SERVER,
            attributes=_attributes(timeline),
            start_time=clock.at(timeline.arrived),
        )
        if root.is_recording():
            self._phases(root, timeline, clock, end)
        error = _error_of(timeline)
        if error:
            root.set_status(Status(StatusCode.ERROR, error))
        root.end(clock.at(end))

    def _phases(self, root: Span, timeline: Timeline, clock: _Clock, end: float) -> None:
        inside, error = set_span_in_context(root), _error_of(timeline)
        for name, since, until, complete in timeline.phases(end):
            span = self._tracer.start_span(
                name,
                context=inside,
                kind=KINDS.get(name, SpanKind.INTERNAL),
                start_time=clock.at(since),
            )
            # The stamp that ends a stream says that it is over, and not that it came to its end.
            if not complete or (name == "stream" and error):
                span.set_status(Status(StatusCode.ERROR, error or "broken off"))
            span.end(clock.at(until))

    async def close(self) -> None:
        """Send what is left, within the limit."""
        with trio.move_on_after(FLUSH_LIMIT, shield=True):
            await trio.to_thread.run_sync(self._provider.shutdown, abandon_on_cancel=True)
            return
        log.warning("spans_lost")


def _context_of(timeline: Timeline) -> Context:
    """Return the caller's context; an empty one where there is none, never that of the process."""
    parent = parse_traceparent(timeline.parent)
    if parent is None:
        return Context()
    flags = TraceFlags(TraceFlags.SAMPLED if parent.sampled else TraceFlags.DEFAULT)
    context = SpanContext(parent.trace_id, parent.span_id, is_remote=True, trace_flags=flags)
    return set_span_in_context(NonRecordingSpan(context))


def _error_of(timeline: Timeline) -> str:
    """Return the code of what went wrong, or the outcome that says it; "" for a good end."""
    row = timeline.row
    if timeline.error or row is None:
        return timeline.error
    return "" if row.outcome in {"completed", "cut"} else row.outcome


def _attributes(timeline: Timeline) -> dict[str, AttributeValue]:
    """Say what a call was, in closed sets and numbers: no prompt, no key, no tenant."""
    row = timeline.row
    found: dict[str, AttributeValue] = {
        "gen_ai.operation.name": timeline.operation,
        "gen_ai.provider.name": "ollama",
        "http.route": timeline.endpoint,
        "trio_gateway.batch": timeline.batch,
    }
    if timeline.model:
        found["gen_ai.request.model"] = timeline.model
    status = row.status_code if row is not None else timeline.status
    if status:
        found["http.response.status_code"] = status
    if timeline.request_id:
        found["trio_gateway.request_id"] = timeline.request_id
    if error := _error_of(timeline):
        found["error.type"] = error
    if row is not None:
        found |= {
            "gen_ai.usage.input_tokens": row.prompt_tokens,
            "gen_ai.usage.output_tokens": row.completion_tokens,
            "trio_gateway.request_id": row.request_id,
            "trio_gateway.outcome": row.outcome.value,
            "trio_gateway.basis": row.basis.value,
            "trio_gateway.charged_tokens": row.charged_tokens,
        }
    return found
