"""One start of the gateway: what was found, what is to run, what is to be told."""

from __future__ import annotations

import hashlib
import os
import secrets
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Protocol

import trio

from trio_gateway import listening, settings
from trio_gateway.announcing import Announcement
from trio_gateway.core.causes import sentence_of
from trio_gateway.keeping import StartFailed, say
from trio_gateway.supervisor import APPLICATION, Plan

if TYPE_CHECKING:
    import socket
    from collections.abc import Awaitable, Callable

    from trio_gateway.datadir import DataDir

TOKEN_FILE = "admin-token.sha256"  # noqa: S105 - a file's name


@dataclass(frozen=True, kw_only=True)
class Seat:
    """What the admin listener gets: sockets that listen, settings, and the token's digest."""

    sockets: list[socket.socket]
    settings: settings.Settings
    token_sha256: str


class Admin(Protocol):
    """Serves the admin API on a seat until cancelled."""

    def __call__(self, seat: Seat, *, task_status: trio.TaskStatus[None]) -> Awaitable[None]:
        """Call `task_status.started()` once it serves."""


@dataclass(frozen=True, kw_only=True)
class Hooks:
    """The parts of the gateway that an installation calls.

    `upgrade(database_url)` runs migrations; `first_key(database_url)` returns the tenant's
    name and, the first time only, a key; both block and run in a thread. `application` is
    what the workers serve.
    """

    upgrade: Callable[[str], object]
    first_key: Callable[[str], tuple[str, str | None]]
    admin: Admin | None = None
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
        self.token_sha256 = _digest(given.admin_token) if given.admin_token else None
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

    def plan(self, workers: int) -> Plan:
        """Say what is to run; makes the admin token of a new installation."""
        if self.token_sha256 is None and self.folder is not None:
            self.token_sha256 = self.folder.read(TOKEN_FILE)
            if self.token_sha256 is None:
                self._new_token = f"tga-{secrets.token_urlsafe(32)}"
                self.token_sha256 = _digest(self._new_token)
        admin = None
        if self._hooks.admin is not None and self.token_sha256 is not None:
            seat = Seat(sockets=self._admin, settings=self._given, token_sha256=self.token_sha256)
            admin = partial(self._hooks.admin, seat)
        elif self._hooks.admin is not None:
            say("admin_off", reason="TRIO_GATEWAY_ADMIN_TOKEN is not set")
            listening.close(self._admin)
            self._admin_url = None
        return Plan(
            sockets=self._public,
            environ=worker_environ(self._given),
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
        except Exception as error:
            reason = sentence_of(error)
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

    def announce(self) -> None:
        """Tell where everything is; a new token counts as shown from here on."""
        if self.folder is not None and self._new_token is not None:
            self.folder.write(TOKEN_FILE, _digest(self._new_token))
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
    """Return our environment with the addresses as they were found, without the admin token."""
    environ = dict(os.environ)
    for name in ("database_url", "redis_url", "ollama_base_url", "blob_url", "admin_token"):
        variable = settings.variable(name)
        environ.pop(variable, None)
        environ.pop(f"{variable}_FILE", None)
        value = getattr(given, name)
        if value and name != "admin_token":
            environ[variable] = value
    return environ


def _digest(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()
