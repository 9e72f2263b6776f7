"""Both embedded stores of one data directory, for plain code and for tests.

`with stores.start(path) as running:` gives `running.database_url` and `running.redis_url`;
`running.redis.kill()`, `.start()`, `.wipe()` and the like play the faults.
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from trio_gateway.datadir import DataDir
from trio_gateway.embedded.postgres import Postgres
from trio_gateway.embedded.redis import Redis

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@dataclass(frozen=True)
class Stores:
    """The pair; each can be stopped, killed, wiped and started by itself."""

    postgres: Postgres
    redis: Redis

    @property
    def database_url(self) -> str:
        """PostgreSQL's address, the same after every restart."""
        return self.postgres.url

    @property
    def redis_url(self) -> str:
        """The address of Redis, the same after every restart."""
        return self.redis.url

    def __iter__(self) -> Iterator[str]:
        """Unpack as `database_url, redis_url`."""
        return iter((self.database_url, self.redis_url))


def of(folder: DataDir) -> Stores:
    """Name the stores of an opened data directory; nothing is started."""
    sockets = folder.sockets()
    return Stores(
        Postgres(folder.path / "postgres", sockets), Redis(folder.path / "redis", sockets)
    )


@contextmanager
def start(path: Path) -> Iterator[Stores]:
    """Run both stores on a data directory until the block ends.

    Call it from the main thread: the servers die with the thread that started them. Raises
    StoreFailed, DataDirInUse or DataDirError.
    """
    with DataDir(path) as folder:
        both = of(folder)
        try:
            both.redis.start()
            both.postgres.start()
            folder.publish(both.database_url, both.redis_url, both.redis.sockets)
            yield both
        finally:
            both.redis.stop()
            both.postgres.stop()
