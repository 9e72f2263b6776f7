"""The listener: what is believed, and when, while changes come, get lost, or cannot be heard."""

from __future__ import annotations

import contextlib

import pytest
import trio

from tests.proxy import open_door
from trio_gateway.clients import postgres as client
from trio_gateway.clients.bridge import open_bridge
from trio_gateway.clients.postgres import open_listener, open_postgres
from trio_gateway.core.domain import ApiKey, Principal, Tenant
from trio_gateway.core.errors import StoreUnavailable
from trio_gateway.services import revocation
from trio_gateway.services.accounts import Accounts
from trio_gateway.services.keyring import Keyring
from trio_gateway.services.live import Live
from trio_gateway.services.revocation import Revocations
from trio_gateway.services.tenant_rows import STANDING_KEYS, read_installation_secret

SOON = 1.0  # what is promised of a revocation
LATER = 60.0  # what is promised to no second
LISTENING = (
    "SELECT FROM pg_stat_activity WHERE query LIKE 'LISTEN%' AND datname = current_database()"
)


class Cache:
    """Stands for what a worker believes about keys, and notes what it was told to forget."""

    def __init__(self, postgres):
        self.trusted = False
        self.forgotten = []
        self._postgres = postgres

    def forget_key(self, key_id):
        self.forgotten.append(key_id)

    def forget_tenant(self, tenant_id):
        self.forgotten.append(tenant_id)

    def forget_all(self):
        assert not self.trusted, "emptied before it is believed"
        self.forgotten.append("all")

    async def standing(self, key_ids):
        rows = await self._postgres.fetch(STANDING_KEYS, list(key_ids))
        return {row["id"] for row in rows}


class Ears:
    """One worker's listener with what it talks to."""

    def __init__(self, bridge, dsn, postgres):
        self.live = Live()
        self.cache = Cache(postgres)
        self.refreshed = self.reading = self.most_reading = 0
        self.go_on = trio.Event()
        self.go_on.set()
        self.revocations = Revocations(bridge, dsn, self.cache, self.live, self._refresh)

    async def _refresh(self):
        self.reading += 1
        self.most_reading = max(self.reading, self.most_reading)
        try:
            await self.go_on.wait()
        finally:
            self.reading -= 1
        self.refreshed += 1


@contextlib.asynccontextmanager
async def listening(postgres, dsn):
    """Run a listener until the block ends."""
    async with open_bridge() as bridge, trio.open_nursery() as nursery:
        ears = Ears(bridge, dsn, postgres)
        await nursery.start(ears.revocations.run)
        yield ears
        nursery.cancel_scope.cancel()


@pytest.fixture
async def key(postgres):
    """A tenant's key."""
    await Accounts(postgres, "test").create("acme", {"all_models": True})
    keyring = Keyring(postgres, await read_installation_secret(postgres), "test")
    return await keyring.issue("acme", {})


def principal(key):
    """Return who presents the key."""
    tenant_id = key["tenant_id"]
    return Principal(Tenant(tenant_id, "acme"), ApiKey(key["id"], "public", tenant_id=tenant_id))


async def until(condition, limit=SOON):
    """Wait until it holds."""
    with trio.fail_after(limit):
        while not condition():  # noqa: ASYNC110 - another task's state, without an event
            await trio.sleep(0.002)


async def test_started_means_listening_with_an_empty_cache(database, postgres, key):
    """Emptied, then believed; the models' policies are read."""
    async with listening(postgres, database) as ears:
        assert (ears.cache.trusted, ears.cache.forgotten, ears.refreshed) == (True, ["all"], 1)
        assert ears.revocations.listening
    assert not ears.cache.trusted, "nobody listens any more"


CHANGES = {
    "revocation": "INSERT INTO gateway.revocations (key_id) VALUES ($1)",
    "disabled key": "UPDATE gateway.api_keys SET disabled_at = now() WHERE id = $1",
    "deleted key": "DELETE FROM gateway.api_keys WHERE id = $1",
    "disabled tenant": "UPDATE gateway.tenants SET disabled_at = now() WHERE $1 <> ''",
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
async def test_a_change_evicts_and_cuts(database, postgres, key, change):
    """Every way to take a key away, by raw SQL, is heard within a second."""
    async with listening(postgres, database) as ears:
        with ears.live.hold(principal(key)) as leash:
            await postgres.fetch(change, key["id"])
            await until(lambda: leash.reason)
        assert set(ears.cache.forgotten) & {key["id"], key["tenant_id"]}


async def test_a_change_that_takes_nothing_away_evicts_alone(database, postgres, key):
    """A new name or limit is for new calls."""
    async with listening(postgres, database) as ears:
        with ears.live.hold(principal(key)) as leash:
            rename = "UPDATE gateway.api_keys SET name = 'n', expires_at = now() WHERE id = $1"
            await postgres.fetch(rename, key["id"])
            await until(lambda: key["id"] in ears.cache.forgotten, LATER)
            # What comes next in the channel is handled after the look at this key.
            await postgres.fetch("INSERT INTO gateway.models (name) VALUES ('a:latest')")
            await until(lambda: ears.refreshed == 2, LATER)
            assert leash.reason is None


async def test_a_change_of_the_models_reads_the_policies_again(database, postgres, key):
    """Blocks, weights and pins reach every worker."""
    async with listening(postgres, database) as ears:
        await postgres.fetch("INSERT INTO gateway.models (name) VALUES ('a:latest')")
        await until(lambda: ears.refreshed == 2, LATER)


async def test_without_a_listener_nothing_is_believed_and_live_keys_are_polled(
    database, postgres, key
):
    """A revocation during the outage cuts within a second all the same."""
    async with open_door(database) as door, listening(postgres, door.url) as ears:
        door.shut()
        await until(lambda: not ears.cache.trusted, LATER)
        with ears.live.hold(principal(key)) as leash:
            await postgres.fetch(CHANGES["revocation"], key["id"])
            await until(lambda: leash.reason, LATER)
        assert not ears.revocations.listening
        assert ears.revocations.informed


async def test_live_keys_are_polled_while_listen_is_on_its_way(
    database, postgres, key, monkeypatch
):
    """A server that takes the connection and then says nothing keeps nobody from looking."""
    monkeypatch.setattr(client, "LISTEN_LIMIT", 600.0)
    async with open_door(database) as door, listening(postgres, door.url) as ears:
        door.swallow_from(b"LISTEN")
        door.cut()
        with trio.fail_after(LATER):
            await door.swallowed.wait()
        with ears.live.hold(principal(key)) as leash:
            await postgres.fetch(CHANGES["revocation"], key["id"])
            await until(lambda: leash.reason, LATER)
        assert not ears.revocations.listening


async def test_without_a_listener_the_policies_of_models_are_read_again(database, postgres, key):
    """A model that is blocked meanwhile is blocked for this worker, too."""
    async with open_door(database) as door, listening(postgres, door.url) as ears:
        door.shut()
        await until(lambda: not ears.cache.trusted, LATER)
        before = ears.refreshed
        await until(lambda: ears.refreshed >= before + 2, LATER)
        assert not ears.revocations.listening


async def test_who_cannot_ask_either_is_not_informed(database, postgres, key):
    """Nothing is heard and nothing answered: no key can be proven, until something is."""
    async with (
        open_door(database) as door,
        open_bridge() as bridge,
        open_postgres(bridge, door.url, size=2) as asked,
        listening(asked, door.url) as ears,
    ):
        with ears.live.hold(principal(key)):
            assert ears.revocations.informed
            door.shut()
            await until(lambda: not ears.revocations.informed, LATER)
            door.reopen()
            await until(lambda: ears.revocations.informed, LATER)


async def test_an_answer_that_comes_late_does_not_outdo_a_newer_one(
    database, postgres, key, monkeypatch
):
    """The models are read by one at a time: what is read last was asked for last."""
    monkeypatch.setattr(revocation, "LOOK_LIMIT", 600.0)
    async with open_door(database) as door, listening(postgres, door.url) as ears:
        door.shut()
        await until(lambda: not ears.cache.trusted, LATER)
        ears.go_on = trio.Event()
        await until(lambda: ears.reading, LATER)
        door.reopen()
        with trio.fail_after(LATER):
            while not await postgres.fetch(LISTENING):  # noqa: ASYNC110 - of another program
                await trio.sleep(0.01)
        assert (ears.reading, ears.cache.trusted) == (1, False)
        ears.go_on.set()
        await until(lambda: ears.cache.trusted, LATER)
        assert ears.most_reading == 1


async def test_after_a_reconnect_everything_is_emptied_and_looked_at_again(database, postgres, key):
    """What changed unheard is found, and then the cache is believed again."""
    async with open_door(database) as door, listening(postgres, door.url) as ears:
        door.shut()
        await until(lambda: not ears.cache.trusted, LATER)
        ears.cache.forgotten.clear()
        door.reopen()
        await until(lambda: ears.cache.trusted, LATER)
        assert ears.cache.forgotten == ["all"]
        with ears.live.hold(principal(key)) as leash:
            await postgres.fetch(CHANGES["revocation"], key["id"])
            await until(lambda: leash.reason)


async def test_a_connection_that_swallows_the_answers_is_noticed(database, postgres, key):
    """A half-dead connection, as behind a firewall: the heartbeat finds out within seconds."""
    async with open_door(database) as door, listening(postgres, door.url) as ears:
        door.swallow()
        await until(lambda: not ears.cache.trusted, LATER)
        door.reopen()
        await until(lambda: ears.cache.trusted, LATER)


async def test_a_database_that_takes_no_connections_is_a_store_out_of_reach(
    stores, database, postgres
):
    """Closed for maintenance: an error that the listener waits out, and not one that ends it."""
    (row,) = await postgres.fetch("SELECT current_database() AS name")
    async with open_bridge() as bridge, open_postgres(bridge, stores.database_url, 1) as admin:
        await admin.fetch(f'ALTER DATABASE "{row["name"]}" WITH ALLOW_CONNECTIONS false')
        with pytest.raises(StoreUnavailable):
            async with open_listener(bridge, database, "any", print, print):
                pass
        async with open_postgres(bridge, database, 1) as pool:
            with pytest.raises(StoreUnavailable):
                await pool.fetch("SELECT 1")
