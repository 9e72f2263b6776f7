"""Wires what a call passes between its principal and its ledger row, in one worker."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import trio

from trio_gateway.clients.upstream import Timeouts, Upstream
from trio_gateway.core.errors import StoreUnavailable
from trio_gateway.pipeline.gate import Gate, Rules
from trio_gateway.services.backends import Backends
from trio_gateway.services.catalog import Catalog
from trio_gateway.services.ledger.ledger import Ledger
from trio_gateway.services.ledger.retention import Retention
from trio_gateway.services.ledger.writer import LedgerWriter
from trio_gateway.services.policies import Policies
from trio_gateway.services.quota.hydrate import Hydrator
from trio_gateway.services.quota.quota import Quota
from trio_gateway.services.quota.renewal import Renewals
from trio_gateway.services.quota.sweep import Sweeper

if TYPE_CHECKING:
    import httpx

    from trio_gateway.clients.postgres import Postgres
    from trio_gateway.clients.redis import Redis
    from trio_gateway.pipeline.observing import Observer
    from trio_gateway.settings import Settings

EPOCH_LIMIT = 15.0  # seconds to wait for live holds, after which the sweep sees to them


async def open_gate(
    settings: Settings,
    stores: tuple[Postgres, Redis],
    transport: httpx.AsyncBaseTransport,
    nursery: trio.Nursery,
    observer: Observer,
) -> Gate:
    """Wire what a call passes, and start its tasks; returns once holds can be trusted."""
    postgres, redis = stores
    hydrator = Hydrator(redis, postgres, settings.renewal)
    quota = Quota(
        redis,
        hydrator,
        lease=settings.hold_lease,
        min_output=settings.min_output_tokens,
        in_flight=settings.tenant_in_flight,
    )
    ledger = Ledger(postgres)
    writer = LedgerWriter(ledger, quota.settle, lambda: len(quota.live) - writer.backlog)
    renewals = Renewals(redis, quota, ledger, settings.renewal)
    sweeper = _sweeper(settings, redis, quota, ledger)
    sweeper.found = observer.metrics.swept
    backends = Backends(
        settings.backends, settings.backend_slots, settings.queue_limit, settings.queue_timeout
    )
    upstream = _upstream(settings, transport, backends)
    catalog = _catalog(settings, redis, upstream)
    retention = Retention(postgres, settings.ledger_retention_days)
    keepers = (writer.run, renewals.run, catalog.run, sweeper.run, retention.run, hydrator.follow)
    for task in keepers:
        await nursery.start(task)
    await _epoch_settled(hydrator)
    return Gate(
        _rules(settings), Policies(postgres), catalog, quota, writer, backends, upstream, observer
    )


def _sweeper(settings: Settings, redis: Redis, quota: Quota, ledger: Ledger) -> Sweeper:
    return Sweeper(
        redis,
        quota,
        ledger,
        interval=settings.sweep_interval,
        lease=settings.hold_lease,
        renewal=settings.renewal,
    )


def _catalog(settings: Settings, redis: Redis, upstream: Upstream) -> Catalog:
    return Catalog(
        redis,
        partial(upstream.get_json, path="/api/tags"),
        settings.backends,
        interval=settings.discovery_interval,
        ttl=settings.discovery_ttl,
    )


def _upstream(
    settings: Settings, transport: httpx.AsyncBaseTransport, backends: Backends
) -> Upstream:
    timeouts = Timeouts(
        connect=settings.connect_timeout,
        first_byte=settings.first_byte_timeout,
        idle=settings.idle_timeout,
    )
    return Upstream(transport, timeouts, report=backends.report)


def _rules(settings: Settings) -> Rules:
    return Rules(
        default_output=settings.default_max_output_tokens,
        call_timeout=settings.call_timeout,
        write_stall=settings.write_stall_timeout,
        lease=settings.hold_lease,
        keep_alive=settings.keep_alive,
    )


async def _epoch_settled(hydrator: Hydrator) -> None:
    """Wait until live holds of other workers are back, if Redis just began a new life."""
    with trio.move_on_after(EPOCH_LIMIT):
        while True:
            try:
                remaining = await hydrator.settled()
            except StoreUnavailable:
                remaining = 0.2
            if not remaining:
                return
            await trio.sleep(remaining)
