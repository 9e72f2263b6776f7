"""What validation works with: a real PostgreSQL, a folder of blobs, a catalog in Redis."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import trio

from trio_gateway.clients.blobs import Blobs, open_blobs
from trio_gateway.clients.postgres import Postgres
from trio_gateway.clients.redis import Redis
from trio_gateway.core.batches import Wanted
from trio_gateway.core.domain import Principal
from trio_gateway.core.errors import UpstreamError
from trio_gateway.pipeline.batches.validation import Validator
from trio_gateway.pipeline.gate import Gate
from trio_gateway.services.accounts import Accounts
from trio_gateway.services.batches.book import BatchBook
from trio_gateway.services.batches.intake import Intake
from trio_gateway.services.catalog import Catalog
from trio_gateway.services.keyring import Keyring
from trio_gateway.services.policies import Policies
from trio_gateway.services.tenant_rows import read_installation_secret
from trio_gateway.services.tenants import Tenants

CHAT = "/v1/chat/completions"
MAX_LINE = 100_000  # bytes
ADD_FILE = """
INSERT INTO gateway.files (id, tenant_id, purpose, filename, bytes, blob, expires_at)
VALUES ($1, $2, $3, 'input.jsonl', $4, $5, $6)
"""
_numbers = itertools.count(1)


class Desk:
    """Tenants `acme` and `other` with a key each, and validators to be asked for."""

    def __init__(self, postgres: Postgres, blobs: Blobs, tenants: Tenants, catalog: Catalog):
        self.postgres = postgres
        self.blobs = blobs
        self.tenants = tenants
        self.catalog = catalog
        self.policies = Policies(postgres)
        self.intake = Intake(postgres)
        self.book = BatchBook(postgres)
        self.principals: dict[str, Principal] = {}
        self.backends: dict[str, list[str] | None] = {}
        self.redis: Any = None

    def validator(
        self, intake: Intake | None = None, lease: float = 30.0, tenant_batches: int = 20
    ) -> Validator:
        """Make one worker's validator."""
        unused: Any = None
        gate = Gate(unused, self.policies, self.catalog, unused, unused, unused, unused)
        return Validator(
            self.tenants,
            gate,
            self.blobs,
            intake or self.intake,
            lease=lease,
            tenant_batches=tenant_batches,
            max_line=MAX_LINE,
        )

    async def file(
        self, content: bytes, tenant: str = "acme", purpose: str = "batch", *, lives: float = 3600
    ) -> str:
        """Upload a file that lives so many seconds."""
        tenant_id = self.principals[tenant].tenant.id
        file_id = f"file-{next(_numbers):024x}"
        blob = f"files/{tenant_id}/{file_id}"
        await self.blobs.put(blob, content)
        ends = datetime.now(UTC) + timedelta(seconds=lives)
        await self.postgres.fetch(ADD_FILE, file_id, tenant_id, purpose, len(content), blob, ends)
        return file_id

    async def batch(self, file_id: str, tenant: str = "acme", endpoint: str = CHAT) -> str:
        """Create a batch."""
        made, _ = await self.book.create(self.principals[tenant], Wanted(file_id, endpoint))
        return made.id

    async def made(self, content: bytes, tenant: str = "acme", endpoint: str = CHAT) -> str:
        """Upload a file and create a batch of it."""
        return await self.batch(await self.file(content, tenant), tenant, endpoint)

    async def row(self, batch_id: str) -> dict[str, Any]:
        """Return a batch's row."""
        row = await self.postgres.fetch_one("SELECT * FROM gateway.batches WHERE id = $1", batch_id)
        assert row is not None
        return dict(row)

    async def lines(self, batch_id: str) -> list[dict[str, Any]]:
        """Return a batch's lines in order."""
        query = "SELECT * FROM gateway.batch_lines WHERE batch_id = $1 ORDER BY line"
        return [dict(row) for row in await self.postgres.fetch(query, batch_id)]

    async def errors(self, batch_id: str) -> list[tuple[str, str, str | None, int | None]]:
        """Return what a failed batch shows: code, message, param and line."""
        found = await self.book.find_any(batch_id)
        assert (found.status, found.failed_at is not None) == ("failed", True)
        assert await self.lines(batch_id) == []
        return [(e.code, e.message, e.param, e.line) for e in found.errors or []]

    async def validated(self, content: bytes, endpoint: str = CHAT) -> str:
        """Validate a batch of this file; return its id."""
        batch_id = await self.made(content, endpoint=endpoint)
        assert await self.validator().once()
        return batch_id

    async def lose(self, backend: str) -> None:
        """Let a backend fall silent, and its time to live be over."""
        self.backends[backend] = None
        while self.catalog.complete:
            await self.redis.command("DEL", *self.catalog._keys.values())
            await trio.sleep(0.01)

    async def lapse(self) -> None:
        """Let every lease on a batch run out."""
        await self.postgres.fetch(
            "UPDATE gateway.batches SET lease_until = now() - interval '1 s'"
            " WHERE lease_until IS NOT NULL"
        )


@contextlib.asynccontextmanager
async def open_desk(
    postgres: Postgres, redis_url: str, folder: Path, *silent: str
) -> AsyncIterator[Desk]:
    """Hold a desk open; its catalog knows `llama3.2:latest` and `secret:latest`.

    `silent` are further backends, which do not answer.
    """
    secret = await read_installation_secret(postgres)
    accounts, keys = Accounts(postgres, "test"), Keyring(postgres, secret, "test")
    backend = f"http://validation-{next(_numbers)}:1"
    known: dict[str, list[str] | None] = dict.fromkeys(silent)
    known[backend] = ["llama3.2:latest", "secret:latest"]

    async def tags(asked: str) -> dict[str, Any]:
        await trio.lowlevel.checkpoint()
        names = known.get(asked)
        if names is None:
            raise UpstreamError
        return {"models": [{"name": name, "model": name} for name in names]}

    async with trio.open_nursery() as nursery:
        redis = Redis(redis_url, {})
        await nursery.start(redis.run)
        catalog = Catalog(redis, tags, list(known), interval=0.02, ttl=60)
        await nursery.start(catalog.run)
        desk = Desk(postgres, open_blobs(f"file://{folder}"), Tenants(postgres, secret), catalog)
        desk.backends, desk.redis = known, redis
        for name in ("acme", "other"):
            await accounts.create(name, {"models": ["llama3.2:latest"]})
            key = await keys.issue(name, {})
            desk.principals[name] = await desk.tenants.recall(key["id"])
        yield desk
        nursery.cancel_scope.cancel()
