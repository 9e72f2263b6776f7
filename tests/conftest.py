"""Fixtures that every test shares."""

from __future__ import annotations

import os
import secrets
import shutil
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

import hypothesis
import pytest
import structlog

from tests import stores as test_stores
from tests.stores import TestStores
from tests.world import World, open_world
from trio_gateway.clients.bridge import open_bridge
from trio_gateway.clients.postgres import Postgres, open_postgres

# How long an example takes is the machine's affair, and no fault of what is tested.
hypothesis.settings.register_profile(
    "patient",
    hypothesis.settings(),
    deadline=None,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
)
hypothesis.settings.load_profile("patient")

DAY = 86_400  # seconds
PATH = f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/usr/local/sbin"
TOOLS = {
    "nginx": "deploy/nginx.conf and the rehearsal are not tested",
    "chromium": "the dashboard is not tested in a browser",
    "helm": "the templates of deploy/helm are not rendered",
    "systemd-analyze": "deploy/trio-gateway.service is not read by systemd",
}


def pytest_report_header() -> list[str]:
    missing = {name: lost for name, lost in TOOLS.items() if not shutil.which(name, path=PATH)}
    found = ", ".join(name for name in TOOLS if name not in missing)
    lines = [f"stores: {test_stores.CHOICE}", f"tools: {found or 'none'}"]
    return [*lines, *(f"MISSING {name}: {lost}" for name, lost in missing.items())]


@pytest.fixture(scope="session", autouse=True)
def _data_home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep what has no folder of its own, such as blobs, out of the home of whoever tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_DATA_HOME", str(tmp_path_factory.mktemp("home")))
        yield


@pytest.fixture(autouse=True)
def own_logs() -> None:
    """Let no test write where, or as little as, a gateway of an earlier one was told to."""
    structlog.reset_defaults()


@pytest.fixture
def same_day() -> None:
    """Let no test that counts what one day or month (UTC) brings begin in its last minute."""
    left = DAY - time.time() % DAY
    if left < 60:
        time.sleep(left + 0.1)  # midnight comes by itself, and by no event


@pytest.fixture(scope="session")
def stores() -> Iterator[TestStores]:
    with test_stores.scratch() as folder, test_stores.running(folder) as running:
        yield running


@pytest.fixture(scope="session")
def s3_server() -> Iterator[str]:
    """An S3 server on loopback; yields its address."""
    from moto.server import ThreadedMotoServer  # noqa: PLC0415 - takes a second to import

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    yield "http://{}:{}".format(*server.get_host_and_port())
    server.stop()


@pytest.fixture
def bucket(s3_server: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A bucket of its own, and in the environment what clients need for it."""
    import boto3  # type: ignore[import-untyped]  # noqa: PLC0415 - as above

    monkeypatch.setenv("AWS_ENDPOINT_URL", s3_server)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "some-id")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "some-secret")
    monkeypatch.setenv("AWS_REGION", "us-east-1")
    name = f"bucket-{secrets.token_hex(8)}"
    return boto3.resource("s3", endpoint_url=s3_server).create_bucket(Bucket=name)


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
