"""Real PostgreSQL and Redis for the tests: containers where an engine answers, else embedded."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import redis

from trio_gateway.clients.postgres import run_once
from trio_gateway.embedded import stores as embedded
from trio_gateway.migrate import upgrade

DOCKER = Path("/var/run/docker.sock")
_numbers = itertools.count(1)


def docker_answers() -> bool:
    """Whether a Docker engine can be asked for containers."""
    if "DOCKER_HOST" not in os.environ and not DOCKER.exists():
        return False  # its client would leave a socket open
    try:
        import docker  # noqa: PLC0415 - only where testcontainers would be used

        with contextlib.closing(docker.from_env(timeout=2)) as client:
            client.ping()
    except Exception:
        return False
    return True


USE_DOCKER = docker_answers()
CHOICE = "testcontainers" if USE_DOCKER else "embedded servers"


@dataclass
class TestStores:
    """Addresses of the session's stores."""

    __test__ = False

    database_url: str
    redis_url: str

    def database(self, name: str) -> str:
        """Name another database of the same server."""
        parts = urlsplit(self.database_url)
        return urlunsplit(parts._replace(path=f"/{name}"))


MEMORY = Path("/dev/shm")
ROOM = 2 * 1024**3  # bytes


@contextlib.contextmanager
def scratch() -> Iterator[Path]:
    """Lend a folder for the stores, in memory where there is room.

    Each test has a database of its own, and a copy of one is some hundred files: on a disk
    that takes longer than most tests.
    """
    roomy = os.access(MEMORY, os.W_OK | os.X_OK) and shutil.disk_usage(MEMORY).free > ROOM
    with tempfile.TemporaryDirectory(prefix="tg-", dir=MEMORY if roomy else None) as folder:
        yield Path(folder)


@contextlib.contextmanager
def running(folder: Path) -> Iterator[TestStores]:
    """Run both stores until the block ends."""
    if not USE_DOCKER:
        with embedded.start(folder) as pair:
            yield TestStores(pair.database_url, pair.redis_url)
        return
    from testcontainers.postgres import PostgresContainer  # noqa: PLC0415
    from testcontainers.redis import RedisContainer  # noqa: PLC0415

    with (
        PostgresContainer("postgres:17-alpine", driver=None) as database,
        RedisContainer("redis:7-alpine") as memory,
    ):
        address = f"redis://{memory.get_container_host_ip()}:{memory.get_exposed_port(6379)}/0"
        yield TestStores(database.get_connection_url(), address)


@contextlib.contextmanager
def fresh_database(stores: TestStores) -> Iterator[str]:
    """Lend a migrated database of its own."""
    template = f"template_{os.getpid()}_{datetime.now(UTC):%Y%m}"  # has partitions by the month
    name = f"test_{os.getpid()}_{next(_numbers)}"
    found = asyncio.run(
        run_once(stores.database_url, "SELECT 1 FROM pg_database WHERE datname = $1", template)
    )
    if not found:
        asyncio.run(run_once(stores.database_url, f"CREATE DATABASE {template}"))
        upgrade(stores.database(template))
    asyncio.run(run_once(stores.database_url, f"CREATE DATABASE {name} TEMPLATE {template}"))
    try:
        yield stores.database(name)
    finally:
        asyncio.run(run_once(stores.database_url, f"DROP DATABASE {name} WITH (FORCE)"))


def fresh_redis(stores: TestStores, *, aged: bool = True) -> str:
    """Empty Redis; `aged` lets it look as if it had been up for long, so that nothing waits."""
    client: Any = redis.Redis.from_url(stores.redis_url)
    with contextlib.closing(client):
        client.flushall()
        if aged:
            client.set("tg:epoch", f"{client.info('server')['run_id']}|0")
    return stores.redis_url
