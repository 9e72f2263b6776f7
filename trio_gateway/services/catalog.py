"""Which models exist upstream right now: discovered in the background, kept in Redis with a TTL.

One worker at a time asks each backend; every worker follows Redis. Nothing known means no
model at all, for everybody.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

import orjson
import structlog
import trio

from trio_gateway.core.domain import CatalogModel
from trio_gateway.core.errors import GatewayError, StoreUnavailable
from trio_gateway.core.models import InvalidModelName, canonical

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from trio_gateway.clients.redis import Redis

log = structlog.get_logger()

FOLLOW = 1.0  # seconds between two looks at Redis
FIRST_LIMIT = 5.0  # seconds that the start waits for the first look
AWAIT_LIMIT = 2.0  # of them, for what another worker is asking just then
AWAIT_PAUSE = 0.05  # seconds between two looks for it
MOST_MODELS = 10_000
PREFIX = "tg:catalog:"


class Catalog:
    """The models of every backend, as of the last look."""

    def __init__(
        self,
        redis: Redis,
        fetch: Callable[[str], Awaitable[dict[str, Any]]],
        backends: Sequence[str],
        *,
        interval: float,
        ttl: float,
    ) -> None:
        """`fetch(backend)` returns the object of GET /api/tags; times in seconds."""
        self._redis = redis
        self._fetch = fetch
        self._keys = {backend: _key(backend) for backend in backends}
        self._interval = interval
        self._ttl = ttl
        self._seen: dict[str, tuple[bytes, float, dict[str, CatalogModel]]] = {}
        self._looked: dict[str, float] = {}  # when the last known models of a backend were seen
        self._began = trio.current_time()
        self._awaited: set[str] = set()  # unknown backends that another worker looks at

    def find(self, name: str) -> tuple[CatalogModel, list[str]] | None:
        """Return the model of this canonical name and the backends that have it, or None."""
        now = trio.current_time()
        having = [
            (backend, seen[2][name])
            for backend in self._keys  # in the operator's order, not in that of the first looks
            if (seen := self._seen.get(backend)) and seen[1] > now and name in seen[2]
        ]
        if not having:
            return None
        return having[0][1], [backend for backend, _ in having]

    def models(self) -> list[CatalogModel]:
        """Return every model known, newest first as Ollama lists them, each name once."""
        now = trio.current_time()
        merged: dict[str, CatalogModel] = {}
        for _, until, models in self._seen.values():
            if until > now:
                merged = models | merged
        return list(merged.values())

    def count(self, backend: str) -> int | None:
        """Return how many models a backend has; None where it was not heard of lately."""
        seen = self._seen.get(backend)
        return len(seen[2]) if seen is not None and seen[1] > trio.current_time() else None

    def age(self, backend: str) -> float:
        """Return the seconds since a backend's models were seen, or since this catalog began."""
        return trio.current_time() - self._looked.get(backend, self._began)

    @property
    def complete(self) -> bool:
        """Whether every backend has been looked at lately: what is not found is then not there."""
        now = trio.current_time()
        return all(
            (seen := self._seen.get(backend)) is not None and seen[1] > now
            for backend in self._keys
        )

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Discover and follow for ever; started after the first look."""
        with trio.move_on_after(FIRST_LIMIT):
            await self._look()
            # Workers that start together would deny every model but in the one that asks.
            with trio.move_on_after(AWAIT_LIMIT):
                while self._awaited:
                    await trio.sleep(AWAIT_PAUSE)
                    await self._look()
        task_status.started()
        while True:
            await trio.sleep(min(FOLLOW, self._interval))
            await self._look()

    async def _look(self) -> None:
        async with trio.open_nursery() as nursery:
            for backend in self._keys:
                nursery.start_soon(self._look_at, backend)

    async def _look_at(self, backend: str) -> None:
        try:
            asked = await self._discover(backend)
            await self._follow(backend)
            if asked or backend in self._seen:
                self._awaited.discard(backend)
            else:
                self._awaited.add(backend)
        except StoreUnavailable:
            log.debug("catalog_waits_for_redis")

    async def _discover(self, backend: str) -> bool:
        """Ask if it is this worker's turn; return whether it was."""
        turn = self._keys[backend] + ":turn"
        ms = max(1, int(self._interval * 1000))
        if await self._redis.command("SET", turn, self._redis.run_id, "NX", "PX", ms) is None:
            return False
        try:
            models = parse_tags(await self._fetch(backend))
        except GatewayError as error:
            log.warning("discovery_failed", backend=backend, error=error.code)
            return True
        text = orjson.dumps([model.raw for model in models])
        await self._redis.command("SET", self._keys[backend], text, "PX", int(self._ttl * 1000))
        return True

    async def _follow(self, backend: str) -> None:
        key = self._keys[backend]
        text, left = self._redis.send("GET", key), self._redis.send("PTTL", key)
        raw, ms = await self._redis.answer(text), await self._redis.answer(left)
        if raw is None or ms <= 0:
            self._seen.pop(backend, None)
            return
        known = self._seen.get(backend)
        if known is not None and known[0] == raw:
            models = known[2]
        else:
            models = {model.name: model for model in parse_tags({"models": orjson.loads(raw)})}
        until = trio.current_time() + ms / 1000
        self._seen[backend] = (raw, until, models)
        self._looked[backend] = until - self._ttl


async def discovered(redis: Redis) -> dict[str, str]:
    """Return the digest of every model in Redis by canonical name; for tools, not for calls."""
    found: dict[str, str] = {}
    cursor = 0
    while True:
        reply, keys = await redis.command("SCAN", cursor, "MATCH", PREFIX + "*", "COUNT", 100)
        for key in keys:
            raw = None if key.endswith(b":turn") else await redis.command("GET", key)
            if raw is not None:
                models = parse_tags({"models": orjson.loads(raw)})
                found |= {model.name: model.digest for model in models}
        cursor = int(reply)
        if not cursor:
            return found


def parse_tags(answer: dict[str, Any]) -> list[CatalogModel]:
    """Read the answer of /api/tags; entries without a usable name are left out."""
    entries = answer.get("models")
    if not isinstance(entries, list):
        return []
    models = []
    for entry in entries[:MOST_MODELS]:
        if not isinstance(entry, dict):
            continue
        name = entry.get("model") or entry.get("name")
        try:
            found = canonical(name if isinstance(name, str) else "")
        except InvalidModelName:
            continue
        remote = bool(entry.get("remote_host") or entry.get("remote_model")) or found.cloud
        models.append(CatalogModel(found.full, str(entry.get("digest") or ""), remote, entry))
    return models


def _key(backend: str) -> str:
    return PREFIX + hashlib.sha256(backend.encode()).hexdigest()[:16]
