"""Shows once a second, as gauges, what one worker is doing."""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio

from trio_gateway.services.metrics.state import BackendState, Sample

if TYPE_CHECKING:
    from trio_gateway.web.gateway import Gateway

EVERY = 1.0  # seconds


async def keep_sampling(
    gateway: Gateway, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
) -> None:
    """Sample for ever; started with the first."""
    while True:
        gateway.observer.metrics.sample(take_sample(gateway))
        task_status.started()
        task_status = trio.TASK_STATUS_IGNORED
        await trio.sleep(EVERY)


def take_sample(gateway: Gateway) -> Sample:
    """Read a worker's state where it stands."""
    gate = gateway.gate
    return Sample(
        live=len(gateway.live),
        waiting=gate.backends.lines,
        backlog=gate.writer.backlog,
        waited=gate.writer.waited,
        unsettled=len(gate.quota.unsettled) + len(gate.quota.doubtful),
        audit=gateway.audit.waiting,
        listening=gateway.revocations.listening,
        informed=gateway.revocations.informed,
        redis=gateway.redis.connected,
        draining=gateway.draining,
        backends={url: _backend(gateway, url) for url in gate.backends.urls},
    )


def _backend(gateway: Gateway, url: str) -> BackendState:
    backends, catalog = gateway.gate.backends, gateway.gate.catalog
    return BackendState(
        in_flight=backends.slots - backends.free(url),
        slots=backends.slots,
        up=backends.healthy(url),
        models=catalog.count(url) or 0,
        age=catalog.age(url),
    )
