"""Who is calling: every answer, every race, and what is believed for how long."""

from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import trio
import trio.testing
from argon2 import PasswordHasher

from trio_gateway.clients.bridge import open_bridge
from trio_gateway.clients.postgres import NotMigrated, Postgres, open_postgres
from trio_gateway.core.domain import Limits, Period
from trio_gateway.core.errors import StoreUnavailable, Unauthenticated
from trio_gateway.core.keys import new_key
from trio_gateway.services.accounts import Accounts
from trio_gateway.services.key_cache import KeyCache
from trio_gateway.services.keyring import Keyring
from trio_gateway.services.secrets import Secrets
from trio_gateway.services.tenant_rows import read_installation_secret
from trio_gateway.services.tenants import ATTEMPTS, Tenants

LIMIT = 60


class Watched:
    """A store that counts reads, and lets a test stand between a read and its answer."""

    def __init__(self, postgres: Postgres) -> None:
        self.real = postgres
        self.reads = 0
        self.after: Callable[[], Awaitable[None]] | None = None
        self.failure: Exception | None = None

    async def fetch_one(self, query, *args):
        self.reads += 1
        if self.failure is not None:
            raise self.failure
        row = await self.real.fetch_one(query, *args)
        if self.after is not None:
            await self.after()
        return row

    async def fetch(self, query, *args):
        return await self.real.fetch(query, *args)


class CountedSecrets(Secrets):
    """Real argon2, and how often it ran."""

    def __init__(self) -> None:
        super().__init__()
        self.proofs = 0

    async def verify(self, encoded, secret):
        self.proofs += 1
        return await super().verify(encoded, secret)


class World:
    """Tenants over a real database, with one tenant `acme` and the means to add keys."""

    def __init__(self, postgres: Postgres, secret: bytes) -> None:
        self.postgres = postgres
        self.store: Any = Watched(postgres)
        self.hashing = CountedSecrets()
        self.secret = secret
        self.accounts = Accounts(postgres, "test")
        self.keys = Keyring(postgres, secret, "test")
        self.now = datetime.now(UTC)
        self.tenants = self.opened()
        self.tenants.trusted = True

    def opened(self, **choices) -> Tenants:
        return Tenants(
            self.store, self.secret, hashing=self.hashing, now=lambda: self.now, **choices
        )

    async def key(self, **values) -> dict[str, Any]:
        return await self.keys.issue("acme", values)

    async def sql(self, query, *args):
        return await self.postgres.fetch(query, *args)


@pytest.fixture
async def world(postgres: Postgres) -> AsyncIterator[World]:
    with trio.fail_after(LIMIT):
        world = World(postgres, await read_installation_secret(postgres))
        await world.accounts.create("acme", {"all_models": True})
        yield world


async def refused(tenants: Tenants, text: str | None) -> None:
    with pytest.raises(Unauthenticated):
        await tenants.authenticate(text)


async def test_a_key_proves_its_tenant_and_the_limits_of_both(world):
    """The principal carries the tenant's and the key's own limits and models, apart."""
    await world.accounts.update(
        "acme",
        {"all_models": False, "models": ["a:latest", "b:latest"], "budget": 900, "weight_share": 3},
    )
    key = await world.key(
        name="k", models=["a:latest"], budget=5, budget_period="day", requests_per_minute=7
    )
    principal = await world.tenants.authenticate(key["key"])
    assert principal.tenant.name == "acme"
    assert principal.tenant.models == {"a:latest", "b:latest"}
    assert principal.tenant.limits == Limits(budget=900)
    assert principal.tenant.weight_share == 3
    assert (principal.key.id, principal.key.public_id) == (key["id"], key["public_id"])
    assert principal.key.models == {"a:latest"}
    assert principal.key.limits == Limits(requests_per_minute=7, budget=5, budget_period=Period.DAY)


async def test_made_up_keys_are_refused_without_any_store(world):
    """What the text alone refutes costs neither a read nor a proof."""
    foreign = new_key(b"x" * 32).text
    for text in (None, "", "sk-tg-", "nonsense", foreign, foreign + "\0", "ü" * 60):
        await refused(world.tenants, text)
    assert (world.store.reads, world.hashing.proofs) == (0, 0)


async def test_a_well_made_key_that_nobody_issued_costs_one_read_and_no_proof(world):
    """An unknown public id is refused before argon2."""
    await refused(world.tenants, new_key(world.secret).text)
    assert (world.store.reads, world.hashing.proofs) == (1, 0)


@pytest.mark.parametrize(
    "ruin",
    [
        "UPDATE gateway.api_keys SET disabled_at = now()",
        "UPDATE gateway.tenants SET disabled_at = now()",
        "INSERT INTO gateway.revocations (key_id) SELECT id FROM gateway.api_keys",
        "UPDATE gateway.api_keys SET expires_at = now() - interval '1 second'",
        "UPDATE gateway.api_keys SET hash = 'damaged'",
        "DELETE FROM gateway.api_keys",
    ],
)
async def test_every_ruined_key_is_refused_alike(world, ruin):
    """Disabled, revoked, expired, damaged and deleted keys all raise the one refusal."""
    key = await world.key()
    await world.tenants.authenticate(key["key"])
    await world.sql(ruin)
    world.tenants.forget_key(key["id"])
    await refused(world.tenants, key["key"])


async def test_a_trusted_hit_costs_no_read_and_no_proof(world):
    """While changes are heard of, a proven key is believed."""
    key = await world.key()
    first = await world.tenants.authenticate(key["key"])
    assert await world.tenants.authenticate(key["key"]) is first
    assert (world.store.reads, world.hashing.proofs) == (1, 1)


async def test_without_trust_every_call_reads_and_only_the_first_proves(world):
    """A silent listener costs a read a call; the proof of an unchanged hash stands."""
    key = await world.key()
    world.tenants.trusted = False
    for _ in range(3):
        await world.tenants.authenticate(key["key"])
    assert (world.store.reads, world.hashing.proofs) == (3, 1)
    await world.keys.revoke(key["id"])
    await refused(world.tenants, key["key"])


@pytest.mark.parametrize("forget", ["key", "tenant", "all"])
async def test_what_is_forgotten_is_read_again_and_not_proven_again(world, forget):
    """Forgetting by key, by tenant and at large all lead to one read and no argon2."""
    key = await world.key()
    tenant_id = (await world.tenants.authenticate(key["key"])).tenant.id
    if forget == "key":
        world.tenants.forget_key(key["id"])
    elif forget == "tenant":
        world.tenants.forget_tenant(tenant_id)
    else:
        world.tenants.forget_all()
    world.tenants.forget_key("key_of_nobody")
    await world.tenants.authenticate(key["key"])
    assert (world.store.reads, world.hashing.proofs) == (2, 1)


async def test_belief_ends_with_its_time_to_live(world):
    """The backstop behind notifications: an old entry is read again."""
    key = await world.key()
    instant = [0.0]
    tenants = world.opened(cache=KeyCache(10, 60.0, clock=lambda: instant[0]))
    tenants.trusted = True
    for instant[0], reads in ((0.0, 1), (59.9, 1), (60.0, 2)):
        await tenants.authenticate(key["key"])
        assert world.store.reads == reads
    assert world.hashing.proofs == 1


async def test_the_cache_is_bounded_and_the_least_used_key_leaves(world):
    """Past its size the cache drops the key that was not used for longest."""
    cache = KeyCache(2, 60.0)
    tenants = world.opened(cache=cache)
    tenants.trusted = True
    one, two, three = [(await world.key())["key"] for _ in range(3)]
    for text in (one, two, one, three, one):
        await tenants.authenticate(text)
    assert (world.store.reads, len(list(cache))) == (3, 2)
    await tenants.authenticate(two)
    assert world.hashing.proofs == 4


async def test_expiry_is_looked_at_at_every_use(world):
    """A cached key stops at its end, to the instant, with no notification."""
    key = await world.key(expires_at=world.now + timedelta(minutes=1))
    await world.tenants.authenticate(key["key"])
    world.now += timedelta(minutes=1)
    await refused(world.tenants, key["key"])
    assert world.store.reads == 1


async def test_a_rotated_key_works_under_both_secrets_until_the_overlap_ends(world):
    """Both texts are one key; the old one stops at the overlap's end, cached or not."""
    old = await world.key()
    await world.tenants.authenticate(old["key"])
    new = await world.keys.rotate(old["id"], timedelta(hours=1))
    world.tenants.forget_key(old["id"])
    for text in (old["key"], new["key"]):
        principal = await world.tenants.authenticate(text)
        assert principal.key.id == old["id"]
        assert principal.key.public_id == new["public_id"]
    world.now += timedelta(hours=1, seconds=5)
    await refused(world.tenants, old["key"])
    await world.tenants.authenticate(new["key"])


async def test_rotation_without_overlap_and_rotation_twice_end_the_old_secret(world):
    """Only the secret just replaced can overlap."""
    first = await world.key()
    second = await world.keys.rotate(first["id"], timedelta(0))
    await refused(world.tenants, first["key"])
    third = await world.keys.rotate(first["id"], timedelta(hours=1))
    fourth = await world.keys.rotate(first["id"], timedelta(hours=1))
    await refused(world.tenants, second["key"])
    await world.tenants.authenticate(third["key"])
    await world.tenants.authenticate(fourth["key"])


async def test_an_overlap_without_an_end_is_no_overlap(world):
    """A row that names a previous secret but no end fails closed."""
    old = await world.key()
    await world.keys.rotate(old["id"], timedelta(hours=1))
    await world.sql("UPDATE gateway.api_keys SET previous_expires_at = NULL")
    await refused(world.tenants, old["key"])


async def test_the_expiry_of_the_key_ends_an_overlap_too(world):
    """A replaced secret never outlives its key."""
    old = await world.key(expires_at=world.now + timedelta(minutes=1))
    await world.keys.rotate(old["id"], timedelta(hours=1))
    await world.tenants.authenticate(old["key"])
    world.now += timedelta(minutes=2)
    await refused(world.tenants, old["key"])


async def test_concurrent_uses_of_one_key_share_one_read_and_one_proof(world):
    """Single flight: twenty callers, one argon2."""
    key = await world.key()
    seen = []

    async def call():
        seen.append(await world.tenants.authenticate(key["key"]))

    async with trio.open_nursery() as nursery:
        for _ in range(20):
            nursery.start_soon(call)
    assert len(seen) == 20
    assert (world.store.reads, world.hashing.proofs) == (1, 1)


async def test_a_cancelled_leader_leaves_its_followers_unharmed(world):
    """The caller who happened to do the work may hang up; another takes over."""
    key = await world.key()
    reading, seen = trio.Event(), []

    async def stall():
        world.store.after = None
        reading.set()
        await trio.sleep_forever()

    world.store.after = stall
    leader = trio.CancelScope()

    async def lead():
        with leader:
            await world.tenants.authenticate(key["key"])

    async def follow():
        seen.append(await world.tenants.authenticate(key["key"]))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(lead)
        await reading.wait()
        for _ in range(3):
            nursery.start_soon(follow)
        await trio.testing.wait_all_tasks_blocked()
        leader.cancel()
    assert leader.cancelled_caught
    assert len(seen) == 3


async def test_followers_of_endless_cancelled_leaders_fail_closed(world):
    """A caller waits for a bounded number of others, then is told to try again."""
    key = await world.key()
    scopes: dict[Any, trio.CancelScope] = {}
    outcomes = []

    async def hang_up():
        scopes[trio.lowlevel.current_task()].cancel()
        await trio.sleep_forever()

    world.store.after = hang_up

    async def call():
        with trio.CancelScope() as scope:
            scopes[trio.lowlevel.current_task()] = scope
            try:
                await world.tenants.authenticate(key["key"])
            except StoreUnavailable:
                outcomes.append("unavailable")

    async with trio.open_nursery() as nursery:
        for _ in range(ATTEMPTS + 3):
            nursery.start_soon(call)
    assert outcomes


@pytest.mark.parametrize("how", ["key", "tenant", "all"])
async def test_a_read_that_was_overtaken_by_a_revocation_is_dropped(world, how):
    """A row read before the revocation, and told to be forgotten, is never believed."""
    key = await world.key()
    tenant_id = (await world.accounts.show("acme"))["id"]

    async def overtake():
        world.store.after = None
        await world.keys.revoke(key["id"])
        if how == "key":
            world.tenants.forget_key(key["id"])
        elif how == "tenant":
            world.tenants.forget_tenant(tenant_id)
        else:
            world.tenants.forget_all()

    world.store.after = overtake
    await refused(world.tenants, key["key"])
    assert world.store.reads == 2


async def test_a_refusal_that_was_overtaken_is_read_again(world):
    """A key that is enabled while its disabled row is being read is not refused."""
    key = await world.key()
    await world.keys.disable(key["id"])

    async def overtake():
        world.store.after = None
        await world.keys.enable(key["id"])
        world.tenants.forget_key(key["id"])

    world.store.after = overtake
    assert (await world.tenants.authenticate(key["key"])).key.id == key["id"]


async def test_a_key_changed_at_every_read_fails_closed_in_the_end(world):
    """The repeats are bounded."""
    key = await world.key()

    async def overtake():
        world.tenants.forget_all()

    world.store.after = overtake
    with pytest.raises(StoreUnavailable):
        await world.tenants.authenticate(key["key"])
    assert world.store.reads == ATTEMPTS


async def test_changes_of_others_do_not_disturb_a_read(world):
    """Only what concerns this key or its tenant drops the row."""
    key = await world.key()

    async def overtake():
        world.tenants.forget_key("key_other")
        world.tenants.forget_tenant("ten_other")

    world.store.after = overtake
    await world.tenants.authenticate(key["key"])
    assert world.store.reads == 1


@pytest.mark.parametrize("trusted", [True, False])
async def test_without_trust_a_late_comer_wants_a_later_read(world, trusted):
    """Who comes after a read began may not be served by it, unless changes are heard of."""
    key = await world.key()
    world.tenants.trusted = trusted
    reading, proceed = trio.Event(), trio.Event()

    async def stall():
        world.store.after = None
        reading.set()
        await proceed.wait()

    world.store.after = stall
    async with trio.open_nursery() as nursery:
        nursery.start_soon(world.tenants.authenticate, key["key"])
        await reading.wait()
        for _ in range(5):
            nursery.start_soon(world.tenants.authenticate, key["key"])
        await trio.testing.wait_all_tasks_blocked()
        proceed.set()
    assert world.store.reads == (1 if trusted else 2)
    assert world.hashing.proofs == 1


async def test_a_late_comer_is_not_refused_by_an_earlier_read(world):
    """A refusal read before a caller came says nothing about now; a later one is shared."""
    key = await world.key()
    await world.keys.disable(key["id"])
    reading, proceed, outcomes = trio.Event(), trio.Event(), []

    async def stall():
        world.store.after = None
        reading.set()
        await proceed.wait()

    async def call():
        try:
            await world.tenants.authenticate(key["key"])
        except Unauthenticated:
            outcomes.append(401)

    world.store.after = stall
    async with trio.open_nursery() as nursery:
        nursery.start_soon(call)
        await reading.wait()
        for _ in range(5):
            nursery.start_soon(call)
        await trio.testing.wait_all_tasks_blocked()
        proceed.set()
    assert outcomes == [401] * 6
    assert world.store.reads == 2


async def test_a_store_out_of_reach_is_never_a_refusal(world):
    """503, shared by everyone who waits; a malformed key is still refused."""
    key = await world.key()
    world.store.failure = StoreUnavailable()
    outcomes = []

    async def call():
        try:
            await world.tenants.authenticate(key["key"])
        except StoreUnavailable:
            outcomes.append(503)

    async with trio.open_nursery() as nursery:
        for _ in range(5):
            nursery.start_soon(call)
    assert outcomes == [503] * 5
    await refused(world.tenants, "malformed")


async def test_an_unmigrated_database_counts_as_out_of_reach(world):
    """A missing table says nothing about a key."""
    key = await world.key()
    world.store.failure = NotMigrated()
    with pytest.raises(StoreUnavailable):
        await world.tenants.authenticate(key["key"])


async def test_a_bug_in_the_store_reaches_every_caller_as_it_is(world):
    """What is no refusal is not dressed up as one, and no follower hangs."""
    key = await world.key()
    world.store.failure = RuntimeError("a bug")
    with pytest.raises(RuntimeError):
        await world.tenants.authenticate(key["key"])
    world.store.failure = None
    await world.tenants.authenticate(key["key"])


async def test_a_dead_server_is_store_unavailable():
    """The real client's failure arrives as 503."""
    with trio.fail_after(LIMIT):
        async with (
            open_bridge() as bridge,
            open_postgres(bridge, "postgresql://postgres@127.0.0.1:1/none") as postgres,
        ):
            tenants = Tenants(postgres, b"s" * 32)
            with pytest.raises(StoreUnavailable):
                await tenants.authenticate(new_key(b"s" * 32).text)
            with pytest.raises(StoreUnavailable):
                await tenants.standing(["key_x"])


async def with_old_hash(world: World) -> dict[str, Any]:
    key = await world.key()
    secret = key["key"].rsplit("-", 1)[1][:32]
    old = PasswordHasher(time_cost=1, memory_cost=1024, parallelism=1).hash(secret)
    await world.sql("UPDATE gateway.api_keys SET hash = $1", old)
    return key | {"old": old}


async def stored_hash(world: World) -> str:
    return str((await world.sql("SELECT hash FROM gateway.api_keys"))[0]["hash"])


async def test_a_hash_of_other_parameters_is_renewed_at_the_next_use(world):
    """The row gets today's parameters once; its own notification costs a read, no more."""
    key = await with_old_hash(world)
    await world.tenants.authenticate(key["key"])
    renewed = await stored_hash(world)
    assert "m=19456,t=2,p=1" in renewed
    world.tenants.forget_key(key["id"])
    await world.tenants.authenticate(key["key"])
    assert await stored_hash(world) == renewed
    assert world.hashing.proofs == 1


async def test_a_renewal_that_loses_to_another_change_is_let_go(world):
    """The row's new hash wins; the key stays proven against what was read."""
    key = await with_old_hash(world)

    async def overtake():
        world.store.after = None
        await world.sql("UPDATE gateway.api_keys SET hash = 'another'")

    world.store.after = overtake
    await world.tenants.authenticate(key["key"])
    assert await stored_hash(world) == "another"


async def test_a_renewal_that_cannot_be_stored_is_no_refusal(world):
    """The key is proven; the hash is renewed another day."""
    key = await with_old_hash(world)

    async def fail_from_now_on():
        world.store.failure = StoreUnavailable()

    world.store.after = fail_from_now_on
    await world.tenants.authenticate(key["key"])
    assert await stored_hash(world) == key["old"]


async def test_standing_names_the_keys_that_may_go_on(world):
    """Revoked, disabled, deleted keys and keys of disabled tenants stop; expired ones go on."""
    await world.accounts.create("other", {})
    good, expired, revoked, disabled = [await world.key() for _ in range(4)]
    orphan = await world.keys.issue("other", {})
    await world.sql(
        "UPDATE gateway.api_keys SET expires_at = now() - interval '1 day' WHERE id = $1",
        expired["id"],
    )
    await world.keys.revoke(revoked["id"])
    await world.keys.disable(disabled["id"])
    await world.accounts.disable("other")
    asked = [row["id"] for row in (good, expired, revoked, disabled, orphan)]
    assert await world.tenants.standing([*asked, "key_gone"]) == {good["id"], expired["id"]}
    assert await world.tenants.standing([]) == set()


async def test_a_database_without_an_installation_is_not_migrated(postgres):
    """No key can be judged before the secret that signs them is there."""
    with trio.fail_after(LIMIT):
        await postgres.fetch("DELETE FROM gateway.installation")
        with pytest.raises(NotMigrated):
            await read_installation_secret(postgres)
