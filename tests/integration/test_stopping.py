"""SIGTERM under load: every call that had a connection is answered, later ones find none."""

from __future__ import annotations

import signal
from collections import Counter

import httpx
import pytest
import trio

from tests import stores as test_stores
from tests.integration import fleet as fleets
from tests.integration.calls import bearer, books_agree, chat, office

CALLERS = 24
BEFORE = 200  # calls that have ended when the signal comes


@pytest.fixture
def installation(stores, tmp_path):
    redis_url = test_stores.fresh_redis(stores)
    with (
        test_stores.fresh_database(stores) as database,
        fleets.ollama(tmp_path) as sim,
        fleets.fleet(
            "serve",
            tmp_path,
            (database, redis_url),
            sim.url,
            tenant_in_flight=10 * CALLERS,
        ) as running,
    ):
        yield running


class Crowd:
    """Callers who call on until they find no connection, each as a proxy does."""

    def __init__(self, base_url, key, *, kept):
        self.base_url = base_url
        self.headers = bearer(key) | ({} if kept else {"connection": "close"})
        self.ends: Counter[int | str] = Counter()
        self.many = trio.Event()

    async def call(self):
        async with httpx.AsyncClient(base_url=self.base_url, timeout=30) as client:
            while True:
                try:
                    answer = await client.post(
                        "/api/chat", json=chat(stream=False), headers=self.headers
                    )
                except httpx.ConnectError:
                    return
                except httpx.HTTPError as error:
                    self.ends[type(error).__name__] += 1
                    return
                self.ends[answer.status_code] += 1
                if sum(self.ends.values()) >= BEFORE:
                    self.many.set()


@pytest.mark.parametrize("kept", [True, False], ids=["kept connections", "new connections"])
async def test_no_call_is_lost_when_the_gateway_is_told_to_stop(installation, kept):
    """A proxy that goes on to another server when a connection is refused loses nothing.

    Connections that the kernel made are answered although nobody had accepted them, and kept
    ones are given up only after their holders were told.
    """
    async with office(installation.database_url) as desk:
        key = await desk.key("acme")
        crowd = Crowd(installation.base_url, key, kept=kept)
        async with trio.open_nursery() as nursery:
            for _ in range(CALLERS):
                nursery.start_soon(crowd.call)
            with trio.fail_after(30):
                await crowd.many.wait()
            installation.send(signal.SIGTERM)
        assert set(crowd.ends) == {200}
        assert await installation.ended() == 0
        await desk.settled(key, crowd.ends[200])
    await books_agree((installation.database_url, installation.redis_url))
