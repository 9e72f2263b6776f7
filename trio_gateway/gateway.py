"""The roof: opens every resource in order, wires the services, and serves until told to stop.

What one worker holds, outside in:

    asyncio loop, PostgreSQL pool        clients/bridge, clients/postgres
    metrics and traces                   pipeline/observing
    Redis connection                     clients/redis
    ledger writer                        outlives the calls, so that every account is settled
    renewals, sweep, catalog, revocations, audit, hang-ups
    calls                                each in its connection's own nursery
"""

from __future__ import annotations

from contextlib import asynccontextmanager, contextmanager
from typing import TYPE_CHECKING, Any

import trio

from trio_gateway import datadir
from trio_gateway.batching import make_engine
from trio_gateway.clients.blobs import BadBlobUrl, open_blobs
from trio_gateway.clients.bridge import open_bridge
from trio_gateway.clients.hangups import Hangups
from trio_gateway.clients.postgres import (
    BadAddress,
    InsufficientPrivilege,
    NotMigrated,
    open_postgres,
)
from trio_gateway.clients.redis import Redis
from trio_gateway.clients.schema import SCHEMA_VERSION
from trio_gateway.clients.transport import LeanTransport
from trio_gateway.core.causes import first_of
from trio_gateway.core.errors import StoreUnavailable
from trio_gateway.gating import open_gate
from trio_gateway.pipeline.observing import open_observer
from trio_gateway.sampling import keep_sampling
from trio_gateway.services.audit import AuditLog
from trio_gateway.services.batches.book import BatchBook
from trio_gateway.services.files.files import Files
from trio_gateway.services.files.janitor import Janitor
from trio_gateway.services.files.marker import tell_of_marker
from trio_gateway.services.live import Live
from trio_gateway.services.quota.keys import scripts
from trio_gateway.services.revocation import Revocations
from trio_gateway.services.tenant_rows import read_installation_secret
from trio_gateway.services.tenants import Tenants
from trio_gateway.services.workers import Beacon
from trio_gateway.web.cors import Cors
from trio_gateway.web.credentials import trusted_networks
from trio_gateway.web.gateway import Gateway

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    import httpx

    from trio_gateway.clients.blobs import Blobs
    from trio_gateway.clients.bridge import Bridge
    from trio_gateway.clients.postgres import Postgres
    from trio_gateway.pipeline.observing import Observer
    from trio_gateway.settings import Settings

START_LIMIT = 15.0  # seconds for the stores to answer
FLUSH_LIMIT = 3.0  # seconds for the last rows, at the end


class CannotStart(Exception):
    """A worker cannot serve; the text is one sentence for the operator."""


@asynccontextmanager
async def open_gateway(
    settings: Settings, transport: httpx.AsyncBaseTransport | None = None
) -> AsyncIterator[Gateway]:
    """Hold everything a worker needs open; started means able to admit.

    `transport` replaces the one to upstream. Raises CannotStart.
    """
    networks = _checked(settings)
    with start_failures_alone():
        async with (
            transport or LeanTransport() as to_upstream,
            open_bridge() as bridge,
            open_postgres(bridge, settings.database_url) as postgres,
            open_observer(settings.backends) as observer,
            trio.open_nursery() as nursery,
        ):
            stores = bridge, postgres
            gateway = await _open_services(settings, stores, to_upstream, nursery, observer)
            gateway.trusted = networks
            await nursery.start(keep_sampling, gateway)
            await nursery.start(Beacon(gateway.redis, gateway.describe).run)
            try:
                yield gateway
            finally:
                limit = settings.drain_timeout + FLUSH_LIMIT
                with trio.move_on_after(limit, shield=True):
                    await _close(gateway)
                nursery.cancel_scope.cancel()


async def _open_services(
    settings: Settings,
    stores: tuple[Bridge, Postgres],
    transport: httpx.AsyncBaseTransport,
    nursery: trio.Nursery,
    observer: Observer,
) -> Gateway:
    """Wire everything, and start its tasks."""
    bridge, postgres = stores
    tenants = Tenants(postgres, await installation_secret(postgres))
    redis = _redis(settings.redis_url)
    await _within("Redis", nursery, redis.run)
    live, audit, hangups, blobs = Live(), AuditLog(postgres), Hangups(), _blobs(settings)
    gate = await open_gate(settings, (postgres, redis), transport, nursery, observer)
    engine = make_engine(settings, postgres, blobs, gate, tenants, (live, observer.metrics))
    dsn = settings.database_listen_url or settings.database_url
    revocations = Revocations(bridge, dsn, tenants, live, gate.policies.refresh, engine.changed)
    revocations.cut, revocations.heard = observer.metrics.cut, observer.metrics.revoked
    await nursery.start(hangups.run)
    await nursery.start(audit.run)
    await _within("PostgreSQL", nursery, revocations.run)
    nursery.start_soon(tell_of_marker, postgres, blobs)
    await nursery.start(Janitor(postgres, blobs, settings.sweep_interval).run)
    await nursery.start(engine.run)
    return Gateway(
        settings=settings,
        gate=gate,
        tenants=tenants,
        live=live,
        audit=audit,
        redis=redis,
        revocations=revocations,
        hangups=hangups,
        cors=Cors(settings.cors_origins),
        files=Files(postgres, settings.tenant_file_bytes),
        blobs=blobs,
        batches=BatchBook(postgres),
        engine=engine,
        observer=observer,
        nursery=nursery,
    )


async def _close(gateway: Gateway) -> None:
    """Let lines under way end within the drain time; then store the last rows."""
    gateway.begin_drain()  # not everyone who stops the server has said so
    with trio.move_on_after(gateway.settings.drain_timeout):
        await gateway.engine.stopped.wait()
    gateway.cut_all()
    with trio.move_on_after(FLUSH_LIMIT / 2):
        await gateway.engine.stopped.wait()
    await gateway.gate.writer.drained()
    await gateway.audit.flush()


@contextmanager
def start_failures_alone() -> Iterator[None]:
    """Take what an operator must hear out of the groups that nurseries made around it."""
    try:
        yield
    except BaseExceptionGroup as group:
        found = group.subgroup((CannotStart, BadAddress))
        if found is None:
            raise
        raise first_of(found) from None  # noqa: ASYNC123 - the groups say nothing that the sentence does not


def _redis(url: str) -> Redis:
    try:
        return Redis(url, scripts())
    except ValueError as error:
        raise CannotStart(str(error)) from None


def _blobs(settings: Settings) -> Blobs:
    try:
        return open_blobs(settings.blob_url or datadir.blobs_of(datadir.default_path()))
    except BadBlobUrl as error:
        raise CannotStart(str(error)) from None


def _checked(settings: Settings) -> tuple[Any, ...]:
    """Require the stores' addresses, and return the networks of trusted proxies."""
    missing = [
        name
        for name, value in (
            ("DATABASE_URL", settings.database_url),
            ("REDIS_URL", settings.redis_url),
        )
        if not value
    ]
    if missing:
        raise CannotStart(f"{' and '.join(missing)} must be set")
    try:
        return trusted_networks(settings.trusted_proxies)
    except ValueError:
        raise CannotStart("TRIO_GATEWAY_TRUSTED_PROXIES: not addresses or networks") from None


async def installation_secret(postgres: Postgres) -> bytes:
    """Check the schema and return the secret that signs keys; raises CannotStart."""
    try:
        version = await postgres.fetch_one("SELECT version_num FROM gateway.alembic_version")
        secret = await read_installation_secret(postgres)
    except (NotMigrated, InsufficientPrivilege) as error:
        raise CannotStart(str(error)) from None
    except StoreUnavailable:
        raise CannotStart("PostgreSQL at DATABASE_URL cannot be reached") from None
    except ValueError:  # read at the first use; its text may quote the password
        raise CannotStart("DATABASE_URL is not a PostgreSQL address") from None
    if version is None or version["version_num"] != SCHEMA_VERSION:
        raise CannotStart("the database is not at this release; run `trio-gateway migrate`")
    return secret


async def _within(name: str, nursery: trio.Nursery, task: Any) -> None:
    with trio.move_on_after(START_LIMIT):
        await nursery.start(task)
        return
    raise CannotStart(f"{name} cannot be reached")
