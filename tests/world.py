"""A whole gateway in this process, over real sockets, with real stores and a simulated Ollama."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import trio
from hypercorn.config import Config
from hypercorn.trio import serve

from trio_gateway import asgi, settings
from trio_gateway.clients.bridge import open_bridge
from trio_gateway.clients.postgres import Postgres, open_postgres
from trio_gateway.services.accounts import Accounts
from trio_gateway.services.keyring import Keyring
from trio_gateway.services.policies import ModelBook
from trio_gateway.simulator import server as simulator_server
from trio_gateway.simulator.app import Simulator, create_app

MODELS = ("llama3.2:latest", "qwen3:8b", "nomic-embed-text:latest", "secret-model:latest")
KEEP_ALIVE = 75.0  # seconds, as a worker has it; longer than any test waits for an end
SETTLED = 30.0  # seconds for all calls to end
LEDGER = "SELECT * FROM gateway.ledger ORDER BY started_at"


@dataclass
class World:
    """What a test holds: a tenant with a key, the addresses, and ways to look inside."""

    base_url: str
    app: Any
    simulator: Simulator
    postgres: Postgres
    accounts: Accounts
    keyring: Keyring
    models: ModelBook
    client: httpx.AsyncClient
    blobs: Path  # the folder, where no other store was asked for
    tenant: dict[str, Any] = field(default_factory=dict)
    key: dict[str, Any] = field(default_factory=dict)

    @property
    def sim(self) -> Any:
        """The simulated Ollama's script and memory."""
        return self.simulator.sim

    @property
    def gateway(self) -> Any:
        """The worker's wired services."""
        return self.app.gateway

    @property
    def port(self) -> int:
        """The public port."""
        return int(self.base_url.rsplit(":", 1)[1])

    def auth(self, key: Mapping[str, Any] | None = None) -> dict[str, str]:
        """Return the header that presents a key."""
        return {"authorization": f"Bearer {(key or self.key)['key']}"}

    async def post(self, path: str, body: Any, key: Any = None, **kwargs: Any) -> httpx.Response:
        """POST JSON with a key."""
        headers = self.auth(key) | kwargs.pop("headers", {})
        return await self.client.post(path, json=body, headers=headers, **kwargs)

    async def get(self, path: str, key: Any = None) -> httpx.Response:
        """GET with a key."""
        return await self.client.get(path, headers=self.auth(key))

    async def tenant_with_key(self, name: str, tenant: Any = None, key: Any = None) -> Any:
        """Make another tenant (all models unless told otherwise) and a key of it."""
        values = {"all_models": True} if tenant is None else tenant
        await self.accounts.create(name, values)
        return await self.keyring.issue(name, key or {})

    async def settled(self) -> None:
        """Wait until every call has ended and its account is closed."""
        with trio.fail_after(SETTLED):
            await self.gateway.live.ended()
            await self.gateway.gate.writer.drained()

    async def ledger(self) -> list[dict[str, Any]]:
        """Return the ledger, oldest first, once every call is settled."""
        await self.settled()
        return [dict(row) for row in await self.postgres.fetch(LEDGER)]

    async def rows(self, query: str, *args: Any) -> list[dict[str, Any]]:
        """Return the rows of a query."""
        return [dict(row) for row in await self.postgres.fetch(query, *args)]


@contextlib.asynccontextmanager
async def folder_of(beside: World | None) -> AsyncIterator[Path]:
    """Lend a folder for blobs, or that of the other world."""
    with tempfile.TemporaryDirectory(prefix="blobs-", ignore_cleanup_errors=True) as own:
        yield beside.blobs if beside else Path(own)


@contextlib.asynccontextmanager
async def open_world(
    database_url: str,
    redis_url: str,
    *,
    models: Any = MODELS,
    transport: httpx.AsyncBaseTransport | None = None,
    simulator: Simulator | None = None,
    beside: World | None = None,
    keep_alive: float = KEEP_ALIVE,
    **overrides: Any,
) -> AsyncIterator[World]:
    """Run a gateway with one tenant `acme` (all models) and a key; overrides are settings.

    `beside` is another world on the same stores, whose tenant and key this one has too.
    """
    simulator = simulator or create_app(models)
    async with (
        folder_of(beside) as blobs,
        trio.open_nursery() as nursery,
        open_bridge() as bridge,
        open_postgres(bridge, database_url, size=3) as postgres,
    ):
        stop = trio.Event()
        upstream = await nursery.start(
            partial(simulator_server.serve, simulator, shutdown_trigger=stop.wait)
        )
        loaded = settings.load(
            {},
            database_url=database_url,
            redis_url=redis_url,
            ollama_base_url=upstream,
            **({"log_level": "error", "blob_url": blobs.as_uri()} | overrides),
        )
        app = asgi.build(lambda: loaded, transport)
        config = Config()
        config.bind = ["127.0.0.1:0"]
        config.accesslog = None
        config.errorlog = None
        config.graceful_timeout = loaded.drain_timeout + 1
        config.include_server_header = False
        config.keep_alive_timeout = keep_alive
        gateway_stop = trio.Event()
        binds = await nursery.start(
            partial(serve, app, config, shutdown_trigger=gateway_stop.wait, mode="asgi")
        )
        secret = bytes((await postgres.fetch("SELECT key_secret FROM gateway.installation"))[0][0])
        async with httpx.AsyncClient(base_url=binds[0], timeout=60) as client:
            world = World(
                binds[0],
                app,
                simulator,
                postgres,
                Accounts(postgres, "test"),
                Keyring(postgres, secret, "test"),
                ModelBook(postgres, "test"),
                client,
                blobs,
            )
            world.key = beside.key if beside else await world.tenant_with_key("acme")
            world.tenant = await world.accounts.show("acme")
            try:
                yield world
            finally:
                with trio.CancelScope(shield=True):
                    await client.aclose()
                    app.gateway.cut_all()
                    gateway_stop.set()
                    stop.set()
