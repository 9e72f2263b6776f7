"""Wires the engine that runs batches in one worker."""

from __future__ import annotations

from typing import TYPE_CHECKING

from trio_gateway.pipeline.batches.dispatch import Dispatcher
from trio_gateway.pipeline.batches.engine import Engine
from trio_gateway.pipeline.batches.finishing import Finisher
from trio_gateway.pipeline.batches.validation import Validator
from trio_gateway.pipeline.batches.work import Bench
from trio_gateway.services.batches.ending import Endings
from trio_gateway.services.batches.intake import Intake
from trio_gateway.services.batches.lines import Lines
from trio_gateway.services.batches.turns import Turns

if TYPE_CHECKING:
    from collections.abc import Sequence

    from trio_gateway.clients.blobs import Blobs
    from trio_gateway.clients.postgres import Postgres
    from trio_gateway.pipeline.gate import Gate
    from trio_gateway.services.live import Live
    from trio_gateway.services.metrics.metrics import Metrics
    from trio_gateway.services.tenants import Tenants
    from trio_gateway.settings import Settings


def make_engine(
    settings: Settings,
    postgres: Postgres,
    blobs: Blobs,
    gate: Gate,
    tenants: Tenants,
    watching: tuple[Live, Metrics],
) -> Engine:
    """Make an engine that is idle until it is run."""
    lease, (live, metrics) = settings.batch_lease, watching
    bench = Bench(
        gate,
        tenants,
        live,
        Lines(postgres, lease, settings.batch_attempts),
        settings.batch_attempts,
    )
    validator = _validator(settings, postgres, blobs, (gate, tenants), metrics)
    finisher = Finisher(postgres, blobs, Endings(postgres, lease), lease)
    finisher.ended = metrics.batch_ended

    def backends_of(model: str) -> Sequence[str]:
        found = gate.catalog.find(model)
        return () if found is None else found[1]

    dispatcher = Dispatcher(
        bench,
        blobs,
        Turns(backends_of),
        concurrency=settings.batch_concurrency,
        lease=lease,
    )
    dispatcher.ended = metrics.line_ended
    return Engine(validator, finisher, dispatcher)


def _validator(
    settings: Settings,
    postgres: Postgres,
    blobs: Blobs,
    passed: tuple[Gate, Tenants],
    metrics: Metrics,
) -> Validator:
    gate, tenants = passed
    return Validator(
        tenants,
        gate,
        blobs,
        Intake(postgres),
        lease=settings.batch_lease,
        tenant_batches=settings.tenant_batches,
        max_line=settings.max_body_bytes,
        ended=metrics.batch_ended,
    )
