"""A server that goes silent while LISTEN is on its way holds up nobody, and leaves nothing open."""

import pytest
import trio

from tests.proxy import open_door
from trio_gateway.clients import postgres as client
from trio_gateway.clients.bridge import open_bridge
from trio_gateway.clients.postgres import open_listener
from trio_gateway.core.errors import StoreUnavailable

LISTENING = (
    "SELECT FROM pg_stat_activity WHERE query LIKE 'LISTEN%' AND datname = current_database()"
)
AGES = 600.0  # seconds; no test waits for as long


async def gone(postgres):
    """Wait until the server has no connection any more that listens."""
    with trio.fail_after(60):
        while await postgres.fetch(LISTENING):  # noqa: ASYNC110 - what another program does
            await trio.sleep(0.01)


async def test_a_listen_that_is_not_answered_is_out_of_reach(database, postgres, monkeypatch):
    """It is bounded, and its connection is closed."""
    monkeypatch.setattr(client, "LISTEN_LIMIT", 0.1)
    async with open_door(database) as door, open_bridge() as bridge:
        door.swallow_from(b"LISTEN")
        with trio.fail_after(60), pytest.raises(StoreUnavailable):
            async with open_listener(bridge, door.url, "news", print, print):
                pass
        assert door.swallowed.is_set()
        await gone(postgres)


async def test_whoever_gives_up_waiting_for_listen_leaves_no_connection(
    database, postgres, monkeypatch
):
    """As a worker does that stops: the server forgets the connection."""
    monkeypatch.setattr(client, "LISTEN_LIMIT", AGES)
    async with open_door(database) as door, open_bridge() as bridge:
        door.swallow_from(b"LISTEN")

        async def listen():
            async with open_listener(bridge, door.url, "news", print, print):
                pass

        with trio.fail_after(60):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(listen)
                await door.swallowed.wait()
                nursery.cancel_scope.cancel()
        await gone(postgres)
