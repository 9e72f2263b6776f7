"""The doctor's look at Redis: reached, one primary, near, keeps what it is given."""

from __future__ import annotations

import re
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from trio_gateway.cli.check_workers import Report, read_reports
from trio_gateway.cli.door import Failure
from trio_gateway.cli.finding import Finding, ahead, clock, fail, ok, warn
from trio_gateway.cli.redis_line import open_redis
from trio_gateway.cli.session import place
from trio_gateway.clients.sentinel_address import SHAPE
from trio_gateway.core.errors import StoreUnavailable

if TYPE_CHECKING:
    from trio_gateway.clients.redis import Redis

CATALOG = "tg:catalog:*"
OLDEST = (6, 2)
FAR = 10.0  # milliseconds of a round trip; admission and settlement take one each
PINGS = 5
FULL = 0.8  # of maxmemory
LOST = "Start Redis, or correct REDIS_URL."


@dataclass(frozen=True)
class Memory:
    """What was found, what workers report, and whether the running gateway sees models.

    `reports` is None where Redis could not be asked.
    """

    findings: tuple[Finding, ...]
    reports: tuple[Report, ...] | None = None
    sees_models: bool = False


async def check_redis(url: str) -> Memory:
    """Ask Redis about itself and about the workers."""
    try:
        async with open_redis(url, patient=False) as redis:
            try:
                return await _examine(redis, url)
            except StoreUnavailable:
                return Memory((fail("redis", f"refuses commands at {place(url)}", LOST),))
    except Failure as error:
        return Memory((fail("redis", str(error), LOST),))


async def _examine(redis: Redis, url: str) -> Memory:
    text = (await redis.command("INFO")).decode(errors="replace")
    fields = dict(line.split(":", 1) for line in text.splitlines() if ":" in line)
    server = _server(fields, url)
    if server.state == "fail":
        return Memory((server,))  # its other answers would be about something else
    findings = (
        server,
        _memory(fields),
        _persistence(fields),
        _latency(await _fastest(redis)),
        clock("redis clock", await _skew(redis)),
    )
    return Memory(findings, tuple(await read_reports(redis)), await _sees_models(redis))


async def _fastest(redis: Redis) -> float:
    """Return the shortest of a few round trips, in milliseconds: this machine may be busy."""
    took = []
    for _ in range(PINGS):
        began = time.perf_counter()
        await redis.command("PING")
        took.append(time.perf_counter() - began)
    return min(took) * 1000


async def _skew(redis: Redis) -> float:
    began = time.time()
    seconds, micros = await redis.command("TIME")
    return ahead(int(seconds) + int(micros) / 1e6, began, time.time())


async def _sees_models(redis: Redis) -> bool:
    """Whether a worker has stored a catalog that still lives."""
    cursor = b"0"
    while True:
        cursor, names = await redis.command("SCAN", cursor, "MATCH", CATALOG, "COUNT", 1000)
        if any(not name.endswith(b":turn") for name in names):
            return True
        if cursor == b"0":
            return False


def _server(fields: dict[str, str], url: str) -> Finding:
    mode = fields.get("redis_mode", "standalone")
    if mode == "sentinel":
        return fail("redis", "is a sentinel, named as a server", f"Set REDIS_URL to {SHAPE}.")
    if mode == "cluster" or fields.get("cluster_enabled") == "1":
        advice = "Point REDIS_URL at a server with cluster mode off, or at its sentinels."
        return fail("redis", "is part of a cluster, which the gateway does not speak to", advice)
    if fields.get("role") != "master":
        advice = "Point REDIS_URL at the primary, or at the sentinels that know it."
        return fail("redis", "is a read-only replica", advice)
    if fields.get("loading", "0") != "0":
        return fail("redis", "is still loading its data", "Wait, and look again.")
    valkey = fields.get("valkey_version")
    version = fields.get("redis_version", "?")
    numbers = tuple(int(number) for number in re.findall(r"\d+", version)[:2])
    if not valkey and numbers < OLDEST:
        advice = "Upgrade to Redis 6.2 or later, or to Valkey."
        return fail("redis", f"version {version} is too old", advice)
    return ok("redis", f"{f'Valkey {valkey}' if valkey else version} at {place(url)}")


def _memory(fields: dict[str, str]) -> Finding:
    policy = fields.get("maxmemory_policy", "unknown")
    most, used = int(fields.get("maxmemory", "0")), int(fields.get("used_memory", "0"))
    if policy != "noeviction":
        detail = f"maxmemory-policy is {policy}: counters and holds may be evicted"
        advice = "Set maxmemory-policy to noeviction."
        return (fail if most else warn)("redis memory", detail, advice)
    if most and used > FULL * most:
        advice = "Raise maxmemory: once it is full, every new call is refused."
        return warn("redis memory", f"{used / most:.0%} of maxmemory is used", advice)
    return ok("redis memory", f"nothing is evicted; {used / 1024**2:,.1f} MiB used")


def _persistence(fields: dict[str, str]) -> Finding:
    if fields.get("aof_enabled") != "1":
        return warn(
            "redis persistence",
            "no append-only file: a restart drops the holds of calls in flight",
            "Set appendonly to yes; spent budgets are rebuilt from PostgreSQL either way.",
        )
    if fields.get("aof_last_write_status", "ok") != "ok":
        return fail("redis persistence", "the last write failed", "Look at Redis's disk and log.")
    if fields.get("rdb_last_bgsave_status", "ok") != "ok":
        advice = "Look at Redis's disk and log: it may refuse every write until a save succeeds."
        return warn("redis persistence", "the last save failed", advice)
    return ok("redis persistence", "append-only file")


def _latency(took: float) -> Finding:
    detail = f"{took:.2f} ms for a round trip"
    if took < FAR:
        return ok("redis latency", detail)
    return warn("redis latency", detail, "Bring Redis nearer: each call waits for it twice.")
