"""The admin listener in this process, on the stores of a running gateway."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import httpx
import trio
from hypercorn.config import Config
from hypercorn.trio import serve

from tests.world import KEEP_ALIVE, World
from trio_gateway import admin_asgi
from trio_gateway.services.admins import AdminBook
from trio_gateway.services.secrets import Secrets

FIRST = "admin"  # the name of the first admin, as an installation makes it


@dataclass
class AdminWorld:
    """What a test holds of the admin listener."""

    world: World
    base_url: str
    app: Any
    client: httpx.AsyncClient  # sends no token of its own
    admins: AdminBook
    tokens: dict[str, str] = field(default_factory=dict)

    @property
    def office(self) -> Any:
        """The listener's wired services."""
        return self.app.office

    @property
    def port(self) -> int:
        """The port of the listener."""
        return int(self.base_url.rsplit(":", 1)[1])

    async def token(self, role: str = "admin") -> str:
        """Return a token of a role, the same each time."""
        if role not in self.tokens:
            name = FIRST if role == "admin" else f"some-{role}"
            self.tokens[role] = (await self.admins.create(name, role))["token"]
        return self.tokens[role]

    async def auth(self, role: str = "admin") -> dict[str, str]:
        """Return the header that presents a token of a role."""
        return {"authorization": f"Bearer {await self.token(role)}"}

    async def ask(
        self, method: str, path: str, body: Any = None, *, role: str = "admin", **kwargs: Any
    ) -> httpx.Response:
        """Send a request to the API, with a token of a role; `path` is below /admin/v1."""
        headers = await self.auth(role) | kwargs.pop("headers", {})
        if body is not None:
            kwargs["json"] = body
        return await self.client.request(method, f"/admin/v1{path}", headers=headers, **kwargs)


@contextlib.asynccontextmanager
async def open_admin(world: World, **overrides: Any) -> AsyncIterator[AdminWorld]:
    """Serve the admin listener on loopback; overrides are settings beside those of the world."""
    loaded = world.gateway.settings.model_copy(update=overrides)
    app = admin_asgi.build(lambda: loaded)
    config = Config()
    config.bind = ["127.0.0.1:0"]
    config.accesslog = None
    config.errorlog = None
    config.graceful_timeout = 1
    config.include_server_header = False
    config.keep_alive_timeout = KEEP_ALIVE
    stop = trio.Event()
    async with trio.open_nursery() as nursery:
        binds = await nursery.start(
            partial(serve, app, config, shutdown_trigger=stop.wait, mode="asgi")
        )
        book = AdminBook(world.postgres, "test", Secrets())
        async with httpx.AsyncClient(base_url=binds[0], timeout=60) as client:
            try:
                yield AdminWorld(world, binds[0], app, client, book)
            finally:
                with trio.CancelScope(shield=True):
                    await client.aclose()
                    app.begin_drain()
                    stop.set()


@dataclass(frozen=True)
class Operation:
    """One operation of the API, as its own description has it."""

    method: str
    path: str  # below /admin/v1, with its parameters in braces
    document: dict[str, Any]

    def at(self, **names: str) -> str:
        """Return the path of one thing; what is not named is called `x`."""
        path = self.path
        for parameter in self.document["parameters"]:
            if parameter["in"] == "path":
                name = parameter["name"]
                path = path.replace(f"{{{name}}}", names.get(name, "x"))
        return path

    @property
    def body(self) -> dict[str, Any] | None:
        """The schema of its body."""
        if "requestBody" not in self.document:
            return None
        found: dict[str, Any] = self.document["requestBody"]["content"]["application/json"]
        return dict(found["schema"])


def operations(app: Any) -> list[Operation]:
    """Return every operation that the application describes."""
    return [
        Operation(method.upper(), path.removeprefix("/admin/v1"), document)
        for path, methods in app.extensions["trio_gateway_openapi"]["paths"].items()
        for method, document in methods.items()
    ]
