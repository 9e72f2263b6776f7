"""One start of the gateway: what was found, what is to run, what is to be told."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

import trio

from trio_gateway import listening, settings
from trio_gateway.announcing import Announcement
from trio_gateway.core.causes import first_of, sentence_of
from trio_gateway.keeping import StartFailed
from trio_gateway.supervisor import ADMIN_DRAIN, APPLICATION, AdminPlan, Plan

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable
    from pathlib import Path

    from trio_gateway.datadir import DataDir

# Earlier releases kept the digest of the admin token here; it goes into the database.
TOKEN_FILE = "admin-token.sha256"  # noqa: S105 - a file's name
SECRETS = ("database_url", "redis_url", "ollama_base_url", "blob_url")
# The issuer goes with its secret, without which it would be half a setting.
ADMIN_SECRETS = ("admin_token", "metrics_token", "oidc_issuer", "oidc_client_secret")
UNUSABLE = "DATABASE_URL is not a PostgreSQL address"


@dataclass(frozen=True, kw_only=True)
class Hooks:
    """The parts of the gateway that an installation calls.

    `upgrade(database_url)` runs migrations; `first_key(database_url)` returns the tenant's
    name and, the first time only, a key; `first_admin(database_url, digest)` returns a token,
    the first time only, unless it is given the SHA-256 of one in use. All block and run in a
    thread. `application` is what the workers serve, `admin` what the admin listener does.
    """

    upgrade: Callable[[str], object]
    first_key: Callable[[str], tuple[str, str | None]]
    first_admin: Callable[[str, str | None], str | None] = lambda _, __: None
    admin: str | None = None
    application: str = APPLICATION


class Installation:
    """The pieces that a plan calls back; `folder` is None for `serve`."""

    def __init__(
        self,
        given: settings.Settings,
        hooks: Hooks,
        public: list[socket.socket],
        admin: list[socket.socket],
        *,
        as_json: bool,
    ) -> None:
        """Take the settings as found, and sockets that listen (`admin` may be empty)."""
        self.folder: DataDir | None = None
        self._given = given
        self._hooks = hooks
        self._public = public
        self._admin = admin
        self._as_json = as_json
        self._new_token: str | None = None
        self._tenant: str | None = None
        self._key: str | None = None
        # asked now: the sockets are closed when it is told
        self._base_url = listening.url(public)
        self._admin_url = listening.url(admin) if admin else None

    def plan(self, workers: int, metrics: Path) -> Plan:
        """Say what is to run; `metrics` is an empty folder that all processes share."""
        shared = {"PROMETHEUS_MULTIPROC_DIR": str(metrics)}
        admin = None
        if self._hooks.admin is not None and self._admin:
            admin = AdminPlan(
                sockets=self._admin,
                environ=admin_environ(self._given) | shared,
                application=self._hooks.admin,
            )
        return Plan(
            sockets=self._public,
            environ=worker_environ(self._given) | shared,
            drain_timeout=self._given.drain_timeout,
            workers=workers,
            application=self._hooks.application,
            admin=admin,
            ready=self.announce,
        )

    async def prepare(self) -> None:
        """Migrate, and make the first tenant and key; raises StartFailed."""
        database_url = self._given.database_url
        try:
            await trio.to_thread.run_sync(self._hooks.upgrade, database_url)
            made = await trio.to_thread.run_sync(self._hooks.first_key, database_url)
            await self._make_admin()
        except Exception as error:
            # the address is read at the first use, and what is wrong with it may quote it
            unusable = isinstance(first_of(error), ValueError)
            reason = UNUSABLE if unusable else sentence_of(error)
            raise StartFailed(f"the database could not be prepared: {reason}") from error
        self._tenant, self._key = made
        if self.folder is not None:
            self.folder.publish(
                database_url,
                self._given.redis_url,
                self.folder.sockets(),
                ollama_url=self._given.ollama_base_url,
                blob_url=self._given.blob_url,
            )

    async def _make_admin(self) -> None:
        """Make the token of a new installation; an operator's own is enough."""
        if not self._given.admin_token:
            earlier = self.folder.read(TOKEN_FILE) if self.folder is not None else None
            self._new_token = await trio.to_thread.run_sync(
                self._hooks.first_admin, self._given.database_url, earlier
            )

    def announce(self) -> None:
        """Tell where everything is."""
        Announcement(
            base_url=self._base_url,
            admin_url=self._admin_url,
            admin_token=self._new_token,
            tenant=self._tenant,
            api_key=self._key,
            database_url=self._given.database_url,
            redis_url=self._given.redis_url,
            ollama_url=self._given.ollama_base_url,
            pid=os.getpid(),
        ).show(as_json=self._as_json)


def worker_environ(given: settings.Settings) -> dict[str, str]:
    """Return our environment with the addresses as they were found, without what is the admin's."""
    environ = dict(os.environ)
    for name in (*SECRETS, *ADMIN_SECRETS):
        _put(environ, name, getattr(given, name) if name in SECRETS else "")
    return environ


def admin_environ(given: settings.Settings) -> dict[str, str]:
    """Return the environment of the admin listener: the workers', and what is its own."""
    environ = worker_environ(given)
    for name in ADMIN_SECRETS:
        _put(environ, name, getattr(given, name))
    _put(environ, "drain_timeout", str(ADMIN_DRAIN))
    return environ


def _put(environ: dict[str, str], field: str, value: str) -> None:
    """Set a setting, whether it was given as itself, as a file, or not at all."""
    variable = settings.variable(field)
    environ.pop(variable, None)
    environ.pop(f"{variable}_FILE", None)
    if value:
        environ[variable] = value
