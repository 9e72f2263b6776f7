"""The doctor's look at Redis: reached, a primary, keeps what it is given."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from trio_gateway.cli.door import Failure
from trio_gateway.cli.finding import Finding, clock, fail, ok, warn
from trio_gateway.cli.redis_line import open_redis
from trio_gateway.cli.session import place
from trio_gateway.core.errors import StoreUnavailable

if TYPE_CHECKING:
    from trio_gateway.clients.redis import Redis

CATALOG = "tg:catalog:*"


async def check_redis(url: str) -> tuple[list[Finding], bool]:
    """Return what was found, and whether the running gateway sees models."""
    advice = "Start Redis, or correct REDIS_URL."
    try:
        async with open_redis(url) as redis:
            try:
                return await _examine(redis, url)
            except StoreUnavailable:
                return [fail("redis", f"refuses commands at {place(url)}", advice)], False
    except Failure as error:
        return [fail("redis", str(error), advice)], False


async def _examine(redis: Redis, url: str) -> tuple[list[Finding], bool]:
    text = (await redis.command("INFO")).decode()
    fields = dict(line.split(":", 1) for line in text.splitlines() if ":" in line)
    skew = clock("redis clock", await _skew(redis))
    found = [_server(fields, url), _memory(fields), _persistence(fields), skew]
    return found, await _sees_models(redis)


async def _skew(redis: Redis) -> float:
    began = time.time()
    seconds, micros = await redis.command("TIME")
    return int(seconds) + int(micros) / 1e6 - (began + time.time()) / 2


async def _sees_models(redis: Redis) -> bool:
    """Whether a worker has stored a catalogue that still lives."""
    cursor = b"0"
    while True:
        cursor, names = await redis.command("SCAN", cursor, "MATCH", CATALOG, "COUNT", 1000)
        if any(not name.endswith(b":turn") for name in names):
            return True
        if cursor == b"0":
            return False


def _server(fields: dict[str, str], url: str) -> Finding:
    if fields.get("role") != "master":
        return fail("redis", "is a read-only replica", "Point REDIS_URL at the primary.")
    if fields.get("loading", "0") != "0":
        return fail("redis", "is still loading its data", "Wait, and look again.")
    return ok("redis", f"{fields.get('redis_version', '?')} at {place(url)}")


def _memory(fields: dict[str, str]) -> Finding:
    policy = fields.get("maxmemory_policy", "unknown")
    if policy == "noeviction":
        return ok("redis memory", "nothing is evicted")
    detail = f"maxmemory-policy is {policy}: counters and holds may be evicted"
    advice = "Set maxmemory-policy to noeviction."
    limited = fields.get("maxmemory", "0") != "0"
    return (fail if limited else warn)("redis memory", detail, advice)


def _persistence(fields: dict[str, str]) -> Finding:
    if fields.get("aof_enabled") != "1":
        return warn(
            "redis persistence",
            "no append-only file: a restart drops the holds of calls in flight",
            "Set appendonly to yes; spent budgets are rebuilt from PostgreSQL either way.",
        )
    if fields.get("aof_last_write_status", "ok") != "ok":
        return fail("redis persistence", "the last write failed", "Look at Redis's disk and log.")
    return ok("redis persistence", "append-only file")
