"""Fixtures that every test shares."""

from __future__ import annotations

import shutil
from collections.abc import AsyncIterator, Iterator

import pytest

from tests import stores as test_stores
from tests.stores import TestStores
from tests.world import World, open_world
from trio_gateway.clients.bridge import open_bridge
from trio_gateway.clients.postgres import Postgres, open_postgres


def pytest_report_header() -> list[str]:
    nginx = "found" if shutil.which("nginx") else "MISSING, every test of test_nginx is skipped"
    return [f"stores: {test_stores.CHOICE}", f"nginx: {nginx}"]


@pytest.fixture(scope="session")
def stores(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestStores]:
    with test_stores.running(tmp_path_factory.mktemp("stores")) as running:
        yield running


@pytest.fixture
def database(stores: TestStores) -> Iterator[str]:
    with test_stores.fresh_database(stores) as url:
        yield url


@pytest.fixture
def redis_url(stores: TestStores) -> str:
    return test_stores.fresh_redis(stores)


@pytest.fixture
async def postgres(database: str) -> AsyncIterator[Postgres]:
    async with open_bridge() as bridge, open_postgres(bridge, database, size=4) as opened:
        yield opened


@pytest.fixture
async def world(database: str, redis_url: str) -> AsyncIterator[World]:
    async with open_world(database, redis_url) as opened:
        yield opened
