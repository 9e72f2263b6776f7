"""The admin listener's wired services, as its routes see them."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, cast

import trio
from quart import current_app

from trio_gateway.pipeline.books import Books, books_of
from trio_gateway.web.admin.dashboard.feed import Feed
from trio_gateway.web.admin.dashboard.numbers import pulse
from trio_gateway.web.admin.dashboard.proven import Proven

if TYPE_CHECKING:
    from trio_gateway.clients.blobs import Blobs
    from trio_gateway.clients.postgres import Postgres
    from trio_gateway.clients.redis import Redis
    from trio_gateway.core.officers import Officer
    from trio_gateway.services.admins import Admins
    from trio_gateway.services.calls import Calls
    from trio_gateway.services.logins import Logins
    from trio_gateway.services.metrics.metrics import Metrics
    from trio_gateway.services.secrets import Secrets
    from trio_gateway.services.sessions import Sessions
    from trio_gateway.services.workers import WorkerBoard
    from trio_gateway.settings import Settings
    from trio_gateway.web.admin.oidc_office import OidcOffice


@dataclass(slots=True, kw_only=True)
class Office:
    """Everything that an admin's request may need."""

    settings: Settings
    postgres: Postgres
    redis: Redis
    blobs: Blobs
    installation_secret: bytes = field(repr=False)
    hashing: Secrets
    admins: Admins
    sessions: Sessions
    logins: Logins
    calls: Calls
    workers: WorkerBoard
    metrics: Metrics
    hosts: frozenset[str]  # names that a request may ask for
    trusted: tuple[Any, ...] = ()
    oidc: OidcOffice | None = None  # the login by a provider, where one is configured
    # Set when the listener is to go: streams end by it.
    leaving: trio.Event = field(default_factory=trio.Event)
    proven: Proven = field(default_factory=Proven)
    feed: Feed = field(init=False)

    def __post_init__(self) -> None:
        """Let the live numbers be read of what is here."""
        self.feed = Feed(partial(pulse, self), self.sessions.alive, self.leaving)

    def books(self, officer: Officer) -> Books:
        """Return the books in which what this officer changes is recorded under their name."""
        return books_of(
            self.postgres,
            self.installation_secret,
            officer.actor,
            hashing=self.hashing,
            webhook_hosts=self.settings.webhook_hosts,
            keep_last_admin=not self.settings.admin_token,
        )


def office() -> Office:
    """Return the office of the application that serves the present request."""
    return cast("Office", current_app.office)  # type: ignore[attr-defined]
