"""Opens what the admin listener needs, in a process of its own.

It has its own connections to the stores, few of them, so that nothing an operator does waits
for calls, nor they for it.
"""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import trio

from trio_gateway import datadir
from trio_gateway.clients.blobs import open_blobs
from trio_gateway.clients.bridge import open_bridge
from trio_gateway.clients.postgres import open_postgres
from trio_gateway.clients.redis import Redis
from trio_gateway.clients.webhook import WebhookClient
from trio_gateway.core.officers import Role
from trio_gateway.gateway import installation_secret, start_failures_alone
from trio_gateway.oidc import open_oidc
from trio_gateway.services.admins import Admins
from trio_gateway.services.calls import Calls
from trio_gateway.services.logins import Logins
from trio_gateway.services.metrics.metrics import open_metrics
from trio_gateway.services.names import OPERATOR
from trio_gateway.services.notices.deliveries import Deliveries
from trio_gateway.services.secrets import Secrets
from trio_gateway.services.sessions import Sessions
from trio_gateway.services.workers import WorkerBoard
from trio_gateway.web.admin.hosts import allowed_hosts
from trio_gateway.web.admin.office import Office
from trio_gateway.web.credentials import trusted_networks

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from trio_gateway.clients.postgres import Postgres
    from trio_gateway.services.metrics.metrics import Metrics
    from trio_gateway.settings import Settings
    from trio_gateway.web.admin.oidc_office import OidcOffice

CONNECTIONS = 6  # to PostgreSQL


@asynccontextmanager
async def open_office(settings: Settings) -> AsyncIterator[Office]:
    """Hold the admin listener's services open. Raises CannotStart."""
    with start_failures_alone(), open_metrics() as metrics:
        async with _open(settings, metrics) as office:
            yield office


@asynccontextmanager
async def _open(settings: Settings, metrics: Metrics) -> AsyncIterator[Office]:
    async with (
        open_bridge() as bridge,
        open_postgres(bridge, settings.database_url, size=CONNECTIONS) as postgres,
        trio.open_nursery() as nursery,
    ):
        secret = await installation_secret(postgres)
        redis = Redis(settings.redis_url, {})
        nursery.start_soon(redis.run)  # noqa: ASYNC113 - an outage is to be shown, not waited for
        deliveries = Deliveries(
            postgres, WebhookClient(), settings.webhook_hosts, metrics.budget_notice
        )
        await nursery.start(deliveries.run)
        async with open_oidc(settings, redis, secret) as oidc:
            yield _office(settings, (postgres, redis), secret, metrics, oidc)
        nursery.cancel_scope.cancel()


def _office(
    settings: Settings,
    stores: tuple[Postgres, Redis],
    secret: bytes,
    metrics: Metrics,
    oidc: OidcOffice | None,
) -> Office:
    postgres, redis = stores
    hashing = Secrets()
    admins = Admins(postgres, hashing, _fixed(settings))
    return Office(
        settings=settings,
        postgres=postgres,
        redis=redis,
        blobs=open_blobs(settings.blob_url or datadir.blobs_of(datadir.default_path())),
        installation_secret=secret,
        hashing=hashing,
        admins=admins,
        sessions=Sessions(
            postgres,
            admins,
            settings.admin_session_timeout,
            outsiders=bool(settings.oidc_issuer),
        ),
        logins=Logins(postgres),
        calls=Calls(redis, postgres),
        workers=WorkerBoard(redis),
        metrics=metrics,
        hosts=allowed_hosts(settings.admin_public_url),
        trusted=trusted_networks(settings.trusted_proxies),
        oidc=oidc,
    )


def _fixed(settings: Settings) -> dict[str, tuple[str, Role]]:
    """Return the tokens that the settings name."""
    given = {
        settings.metrics_token: ("metrics", Role.METRICS),
        settings.admin_token: (OPERATOR, Role.ADMIN),
    }
    return {token: bearer for token, bearer in given.items() if token}
