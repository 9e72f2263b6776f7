"""What every worker says of itself, once a second, in Redis: for operators, not for calls."""

from __future__ import annotations

import secrets
import time
from typing import TYPE_CHECKING, Any

import orjson
import structlog
import trio

from trio_gateway.core.errors import StoreUnavailable

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from trio_gateway.clients.redis import Redis

log = structlog.get_logger()

INDEX = "tg:workers"  # sorted set: worker -> when it last reported, in seconds
PREFIX = "tg:worker:"
EVERY = 1.0  # seconds
GONE_AFTER = 5.0  # seconds without a report


class Beacon:
    """The reports of one worker."""

    def __init__(self, redis: Redis, describe: Callable[[], Mapping[str, Any]]) -> None:
        """`describe` returns what JSON can hold; it must not wait."""
        self._redis = redis
        self._describe = describe
        self._name = secrets.token_hex(8)

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Report for ever; what Redis does not take is not missed."""
        task_status.started()
        try:
            while True:
                try:
                    await self._report()
                except StoreUnavailable:
                    log.debug("report_missed")
                await trio.sleep(EVERY)
        finally:
            if self._redis.connected:
                self._redis.send("ZREM", INDEX, self._name)

    async def _report(self) -> None:
        now = time.time()
        text = orjson.dumps(dict(self._describe()))
        self._redis.send("ZADD", INDEX, f"{now:.3f}", self._name)
        self._redis.send("ZREMRANGEBYSCORE", INDEX, "-inf", f"{now - 60:.3f}")
        life = int(GONE_AFTER * 1000)
        await self._redis.command("SET", PREFIX + self._name, text, "PX", life)


class WorkerBoard:
    """Reads the reports. Raises StoreUnavailable."""

    def __init__(self, redis: Redis) -> None:
        """Nothing is read yet."""
        self._redis = redis

    async def listing(self) -> list[dict[str, Any]]:
        """Return the reports of the workers that are alive, by machine and slot."""
        names = await self._redis.command("ZRANGE", INDEX, 0, -1)
        if not names:
            return []
        texts = await self._redis.command("MGET", *[PREFIX + name.decode() for name in names])
        found = [orjson.loads(text) for text in texts if text is not None]
        return sorted(found, key=lambda report: (report["host"], report["slot"], report["pid"]))
