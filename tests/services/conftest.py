"""Stores of their own for the services' tests."""

import asyncio
import itertools
import os
from collections.abc import AsyncIterator, Iterator

import pytest

from trio_gateway.clients.bridge import open_bridge
from trio_gateway.clients.postgres import Postgres, open_postgres, run_once
from trio_gateway.embedded import stores as embedded_stores
from trio_gateway.migrate import upgrade

_numbers = itertools.count(1)


@pytest.fixture(scope="session")
def stores(tmp_path_factory: pytest.TempPathFactory):
    with embedded_stores.start(tmp_path_factory.mktemp("stores")) as running:
        yield running


@pytest.fixture(scope="session")
def template(stores) -> str:
    asyncio.run(run_once(stores.database_url, "CREATE DATABASE migrated"))
    url = stores.database_url.replace("/postgres?", "/migrated?")
    upgrade(url)
    return url


@pytest.fixture
def database(stores, template) -> Iterator[str]:
    name = f"test_{os.getpid()}_{next(_numbers)}"
    asyncio.run(run_once(stores.database_url, f"CREATE DATABASE {name} TEMPLATE migrated"))
    yield stores.database_url.replace("/postgres?", f"/{name}?")
    asyncio.run(run_once(stores.database_url, f"DROP DATABASE {name} WITH (FORCE)"))


@pytest.fixture
def redis_url(stores) -> str:
    return stores.redis_url


@pytest.fixture
async def postgres(database: str) -> AsyncIterator[Postgres]:
    async with open_bridge() as bridge, open_postgres(bridge, database, size=4) as opened:
        yield opened
