"""The principal of a key by its id alone: as current, and as quickly forgotten, as by its text."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any

import pytest
import trio
import trio.testing

from tests.services.test_tenants import LIMIT, World
from trio_gateway.clients.bridge import open_bridge
from trio_gateway.clients.postgres import Postgres
from trio_gateway.core.domain import Limits
from trio_gateway.core.errors import StoreUnavailable, Unauthenticated
from trio_gateway.services.live import Live
from trio_gateway.services.revocation import Revocations
from trio_gateway.services.tenant_rows import read_installation_secret


@pytest.fixture
async def world(postgres: Postgres) -> AsyncIterator[World]:
    with trio.fail_after(LIMIT):
        world = World(postgres, await read_installation_secret(postgres))
        await world.accounts.create("acme", {"all_models": True})
        yield world


@contextlib.asynccontextmanager
async def listening(world: World, dsn: str) -> AsyncIterator[None]:
    """Let the world's tenants hear of changes, as a worker's do."""

    async def refresh() -> None:
        await trio.lowlevel.checkpoint()

    async with open_bridge() as bridge, trio.open_nursery() as nursery:
        heard = Revocations(bridge, dsn, world.tenants, Live(), refresh)
        await nursery.start(heard.run)
        yield
        nursery.cancel_scope.cancel()


async def refused(world: World, key_id: str) -> None:
    with pytest.raises(Unauthenticated):
        await world.tenants.recall(key_id)


async def test_a_recalled_principal_is_the_one_that_the_text_proves(world):
    """Tenant, limits and models are those of the row."""
    key = await world.key(models=["a:latest"], requests_per_minute=7)
    recalled = await world.tenants.recall(key["id"])
    assert recalled == await world.tenants.authenticate(key["key"])
    assert recalled.key.limits == Limits(requests_per_minute=7)


async def test_a_recall_costs_no_argon2_and_only_the_first_a_read(world):
    """While changes are heard of, what was read is believed; without, every recall reads."""
    key = await world.key()
    first = await world.tenants.recall(key["id"])
    assert await world.tenants.recall(key["id"]) is first
    assert (world.store.reads, world.hashing.proofs) == (1, 0)
    world.tenants.trusted = False
    await world.tenants.recall(key["id"])
    assert (world.store.reads, world.hashing.proofs) == (2, 0)


async def test_a_recall_proves_no_text(world):
    """What is known of an id says nothing about a secret."""
    key = await world.key()
    await world.tenants.recall(key["id"])
    await world.tenants.authenticate(key["key"])
    assert (world.store.reads, world.hashing.proofs) == (2, 1)


@pytest.mark.parametrize("text", ["key", "public_id", "nobody"])
async def test_only_the_id_of_a_key_recalls_it(world, text):
    """Not its text, not its public id, not an id that nobody has."""
    key = await world.key()
    await refused(world, key.get(text, "key_of_nobody"))


@pytest.mark.parametrize(
    "ruin",
    [
        "UPDATE gateway.api_keys SET disabled_at = now()",
        "UPDATE gateway.tenants SET disabled_at = now()",
        "INSERT INTO gateway.revocations (key_id) SELECT id FROM gateway.api_keys",
        "UPDATE gateway.api_keys SET expires_at = now() - interval '1 second'",
        "DELETE FROM gateway.api_keys",
    ],
)
async def test_every_ruined_key_is_forgotten_when_it_is_heard_of(world, database, ruin):
    """Disabled, revoked, expired and deleted, by hand even: the notification evicts it."""
    key = await world.key()
    async with listening(world, database):
        assert (await world.tenants.recall(key["id"])).key.id == key["id"]
        await world.sql(ruin)
        with pytest.raises(Unauthenticated):
            while await world.tenants.recall(key["id"]):  # noqa: ASYNC110 - it ends by an error
                await trio.sleep(0.01)


async def test_expiry_is_looked_at_at_every_recall(world):
    """A key that was read before stops at its end, to the instant."""
    key = await world.key(expires_at=world.now + timedelta(minutes=1))
    await world.tenants.recall(key["id"])
    world.now += timedelta(minutes=1)
    await refused(world, key["id"])
    assert world.store.reads == 1


async def test_a_rotated_key_is_the_same_key(world):
    """The id stays, past the overlap of the old secret too; expiry is the key's own."""
    old = await world.key(expires_at=world.now + timedelta(days=1))
    await world.tenants.recall(old["id"])
    new = await world.keys.rotate(old["id"], timedelta(hours=1))
    world.tenants.forget_key(old["id"])
    world.now += timedelta(hours=2)
    assert (await world.tenants.recall(old["id"])).key.public_id == new["public_id"]
    world.now += timedelta(hours=23)
    await refused(world, old["id"])


async def test_a_recall_that_was_overtaken_by_a_revocation_is_dropped(world):
    """A row read before the revocation, and told to be forgotten, is never believed."""
    key = await world.key()

    async def overtake() -> None:
        world.store.after = None
        await world.keys.revoke(key["id"])
        world.tenants.forget_key(key["id"])

    world.store.after = overtake
    await refused(world, key["id"])
    assert world.store.reads == 2


async def test_concurrent_recalls_share_one_read(world):
    """The lines of a batch that start together ask once."""
    key = await world.key()
    seen: list[Any] = []

    async def call() -> None:
        seen.append(await world.tenants.recall(key["id"]))

    async with trio.open_nursery() as nursery:
        for _ in range(20):
            nursery.start_soon(call)
    assert (len(seen), world.store.reads) == (20, 1)


async def test_there_is_no_checkpoint_between_the_belief_and_the_return(world):
    """A caller that registers the principal at once can be cut from the first instant on."""
    key = await world.key()
    await world.tenants.recall(key["id"])
    with trio.testing.assert_no_checkpoints():
        await world.tenants.recall(key["id"])


async def test_a_store_out_of_reach_is_no_refusal_of_a_recall(world):
    """The work waits; its key is not called bad."""
    key = await world.key()
    world.store.failure = StoreUnavailable()
    with pytest.raises(StoreUnavailable):
        await world.tenants.recall(key["id"])
