"""A revoked key is refused, and its calls are cut wherever they are, within a second."""

from __future__ import annotations

import contextlib
import time
from datetime import UTC, datetime, timedelta

import orjson
import pytest
import trio
import trio.lowlevel
from argon2 import PasswordHasher

from tests.integration.caller import (
    NATIVE,
    OPENAI,
    PATIENCE,
    SHAPES,
    SOON,
    WHOLE,
    calling,
    connected,
    dispatched,
    ended,
    idle,
    locked,
    request,
    until,
    until_rows,
)
from tests.proxy import open_door
from tests.world import open_world
from trio_gateway.core.errors import Unauthenticated
from trio_gateway.core.keys import parse_key
from trio_gateway.services.secrets import Secrets
from trio_gateway.simulator.script import Script

ESTIMATE = 8  # of "one two three": ceil(13 / 4) + 4
SLOW = Script(tokens=50, token_gap=60)
LOADING = Script(head_delay=60)
REVOKE = "INSERT INTO gateway.revocations (key_id) VALUES ($1)"
ACTS = {
    "revoke": REVOKE,
    "disable key": "UPDATE gateway.api_keys SET disabled_at = now() WHERE id = $1",
    "disable tenant": "UPDATE gateway.tenants SET disabled_at = now() WHERE id ="
    " (SELECT tenant_id FROM gateway.api_keys WHERE id = $1)",
    "delete key": "DELETE FROM gateway.api_keys WHERE id = $1",
}

each_cut = pytest.mark.parametrize(
    ("shape", "act"),
    [(shape, REVOKE) for shape in SHAPES.values()] + [(OPENAI, act) for act in ACTS.values()][1:],
    ids=[*SHAPES, *list(ACTS)[1:]],
)
each_act = pytest.mark.parametrize("act", ACTS.values(), ids=ACTS)


async def strike(world, act=REVOKE, key=None):
    """Take a key away by raw SQL; return when."""
    await world.rows(act, (key or world.key)["id"])
    return time.monotonic()


async def told(caller, shape):
    """Wait for the end of an answer and return what it says."""
    if b" 200 " not in caller.received.partition(b"\r\n")[0]:
        await caller.until(b"}}" if shape is not NATIVE else b'"}')
    else:
        await caller.until(b"\r\n0\r\n\r\n")
    return caller.received


async def test_a_revoked_key_gets_401_for_every_new_call(world):
    """The cache is emptied by the notification: the next call is refused."""
    assert (await world.post(NATIVE.path, NATIVE.body())).status_code == 200
    await strike(world)
    with trio.fail_after(SOON):
        while (await world.get("/api/tags")).status_code == 200:
            await trio.lowlevel.checkpoint()
    for shape in SHAPES.values():
        answer = await world.post(shape.path, shape.body())
        assert (answer.status_code, answer.headers["www-authenticate"]) == (401, "Bearer")
    assert world.sim.started == 1


@each_cut
async def test_a_call_is_cut_midway(world, shape, act):
    """Revoked, disabled or deleted by raw SQL: upstream is closed and the caller hears why."""
    world.sim.play(SLOW)
    async with calling(world, shape) as caller:
        generation = await dispatched(world)
        if shape.stream:
            await caller.until(b"t0")
        await until(lambda: world.sim.generations[0].tokens)
        live = world.gateway.gate.quota.live
        await until(lambda: [hold.output for hold in live.values()] == [1])
        struck = await strike(world, act)
        await until(lambda: generation.end, SOON)
        content = await told(caller, shape)
        row = await ended(world)
    assert generation.ended_at - struck < SOON
    assert generation.end == "disconnected"
    assert (row["outcome"], row["basis"], row["completion_tokens"]) == ("revoked", "partial", 1)
    assert row["charged_tokens"] == ESTIMATE + 1
    if shape.stream:
        assert (caller.status, row["status_code"]) == (200, 200)
        assert b"[DONE]" not in content
        assert b'"done":true' not in content
        wanted = b"invalid_api_key" if shape is OPENAI else Unauthenticated.default_message.encode()
        assert wanted in content.rsplit(b"t0", 1)[1]
    else:
        assert (caller.status, row["status_code"]) == (401, 401)


@each_cut
async def test_a_call_is_cut_while_its_model_loads(world, shape, act):
    """Before the first byte the cut is a plain 401; the prompt is charged."""
    world.sim.play(LOADING)
    async with calling(world, shape) as caller:
        generation = await dispatched(world)
        struck = await strike(world, act)
        await until(lambda: generation.end, SOON)
        await told(caller, shape)
        row = await ended(world)
    assert generation.ended_at - struck < SOON
    assert (caller.status, row["status_code"]) == (401, 401)
    assert (row["outcome"], row["basis"], row["charged_tokens"]) == (
        "revoked",
        "estimated",
        ESTIMATE,
    )


@each_act
async def test_a_call_is_cut_while_queued(database, redis_url, act):
    """It leaves the line with a 401, costs nothing, and its neighbor keeps its place."""
    async with open_world(database, redis_url, backend_slots=1) as world:
        other = await world.tenant_with_key("other")
        world.sim.play(SLOW)
        backends = world.gateway.gate.backends
        async with calling(world, NATIVE, key=other) as first:
            await first.until(b"t0")
            async with calling(world, OPENAI) as victim:
                await until(lambda: backends.waiting == 1)
                struck = await strike(world, act)
                await victim.until(b"invalid_api_key")
                assert time.monotonic() - struck < SOON
                assert (victim.status, backends.waiting, world.sim.open) == (401, 0, 1)
        await idle(world)
        rows = {row["outcome"]: row for row in await world.ledger()}
    assert set(rows) == {"revoked", "aborted"}
    assert (rows["revoked"]["basis"], rows["revoked"]["charged_tokens"]) == ("none", 0)
    assert rows["revoked"]["status_code"] == 401


@each_act
async def test_a_call_is_cut_while_its_body_arrives(world, act):
    """A slow body is no shelter: 401 at once, and no row, for it was never admitted."""
    async with connected(world) as caller:
        await caller.stream.send_all(request(world, OPENAI.path, OPENAI.body(), length=9999))
        await until(lambda: len(world.gateway.live) == 1)
        struck = await strike(world, act)
        await caller.until(b"invalid_api_key")
        assert time.monotonic() - struck < SOON
        assert caller.status == 401
    await idle(world)
    assert (await world.ledger(), world.sim.started) == ([], 0)


async def test_a_key_revoked_while_it_is_proven_is_refused(world):
    """The row was read before, the secret is proven after: the proof is worth nothing."""
    parsed = parse_key(world.key["key"], bytes((await world.rows(SECRET))[0]["key_secret"]))
    assert parsed is not None
    encoded = await Secrets(PasswordHasher(time_cost=60, memory_cost=19 * 1024)).hash(parsed.secret)
    await world.rows(
        "UPDATE gateway.api_keys SET hash = $1 WHERE id = $2", encoded, world.key["id"]
    )
    async with calling(world, OPENAI) as caller:
        async with locked(world, "gateway.api_keys") as waiting:
            await waiting()
        await strike(world)  # the row is being read, or the slow hash is being computed
        assert caller.received == b""
        await caller.until(b"invalid_api_key")
    await idle(world)
    assert (caller.status, world.sim.started) == (401, 0)


SECRET = "SELECT key_secret FROM gateway.installation"


async def test_a_tenant_that_is_deleted_takes_its_calls_along(world):
    """Deleting tenant, keys and revocations in one transaction cuts; ledger and spend stay."""
    world.sim.play(SLOW)
    async with calling(world, OPENAI) as caller:
        await caller.until(b"t0")
        await world.accounts.delete("acme")
        await caller.until(b"invalid_api_key")
        row = await ended(world)
    assert (row["outcome"], row["tenant_id"]) == ("revoked", world.tenant["id"])
    assert (await world.get("/api/tags")).status_code == 401


async def test_a_client_that_does_not_read_is_cut_at_upstream_all_the_same(database, redis_url):
    """Upstream closes at once; only our own last word waits for the client."""
    async with open_world(database, redis_url, write_stall_timeout=60) as world:
        world.sim.play(Script(flood=True))
        live = world.gateway.gate.quota.live
        async with calling(world, NATIVE, buffer=4096, options={"num_predict": 10**7}) as caller:
            generation = await dispatched(world)
            seen = -1
            while seen != (seen := next((hold.output for hold in live.values()), 0)) or not seen:
                await trio.testing.wait_all_tasks_blocked(0.1)
            struck = await strike(world)
            await until(lambda: generation.end, SOON)
            assert generation.ended_at - struck < SOON
            await until(lambda: not len(world.gateway.live))  # given up telling the client
            with pytest.raises(trio.BrokenResourceError):
                await caller.rest()
            row = await ended(world)
    assert (row["outcome"], row["basis"]) == ("revoked", "partial")


@pytest.mark.parametrize(
    "change",
    [
        {"expires_at": datetime.now(UTC) - timedelta(seconds=1)},
        {"models": ["qwen3:8b"]},
        {"requests_per_minute": 0},
    ],
    ids=["expired", "narrowed", "limited"],
)
async def test_expiry_and_narrowing_affect_new_calls_only(world, change):
    """A call in flight goes on to its end; the next one is refused."""
    world.sim.play(Script(tokens=4, held=True, times=1))
    async with calling(world, OPENAI) as caller:
        await caller.until(b"t0")
        await world.keyring.update(world.key["id"], change)
        with trio.fail_after(SOON):
            while (await world.post(NATIVE.path, NATIVE.body())).status_code == 200:
                await trio.lowlevel.checkpoint()
        world.sim.play()
        await caller.until(b"[DONE]")
    await idle(world)
    assert (await world.ledger())[0]["outcome"] == "completed"


@each_act
async def test_other_keys_calls_are_left_alone(world, act):
    """A call of another tenant streams on while its neighbor is cut."""
    other = await world.tenant_with_key("other")
    world.sim.play(SLOW)
    async with calling(world, OPENAI) as victim, calling(world, OPENAI, key=other) as neighbor:
        await victim.until(b"t0")
        await neighbor.until(b"t0")
        await strike(world, act)
        await victim.until(b"invalid_api_key")
        await until(lambda: world.sim.open == 1, SOON)
        assert (await world.get("/api/tags", other)).status_code == 200
        assert b"error" not in neighbor.received


async def test_a_sibling_key_outlives_its_tenants_other_key(world):
    """Revoking one key of a tenant leaves the calls of the other."""
    sibling = await world.keyring.issue("acme", {})
    world.sim.play(SLOW)
    async with calling(world, OPENAI) as victim, calling(world, OPENAI, key=sibling) as neighbor:
        await victim.until(b"t0")
        await neighbor.until(b"t0")
        await strike(world)
        await victim.until(b"invalid_api_key")
        await until(lambda: world.sim.open == 1, SOON)
        assert (await world.get("/api/tags", sibling)).status_code == 200


async def test_a_rotated_secret_without_overlap_is_refused_and_the_new_one_works(world):
    """Rotation changes which text proves the key; calls in flight are the key's and go on."""
    world.sim.play(SLOW)
    async with calling(world, OPENAI) as caller:
        await caller.until(b"t0")
        rotated = await world.keyring.rotate(world.key["id"], timedelta(0))
        with trio.fail_after(SOON):
            while (await world.get("/api/tags")).status_code == 200:
                await trio.lowlevel.checkpoint()
        assert (await world.get("/api/tags", rotated)).status_code == 200
        assert world.sim.open == 1


async def test_every_gateway_on_the_same_stores_cuts(database, redis_url):
    """One INSERT ends the calls of the key on all of them, and both refuse it from then on."""
    async with (
        open_world(database, redis_url) as one,
        open_world(database, redis_url, beside=one) as two,
    ):
        for world in (one, two):
            world.sim.play(SLOW)
        async with calling(one, OPENAI) as first, calling(two, OPENAI) as second:
            await first.until(b"t0")
            await second.until(b"t0")
            struck = await strike(one)
            await until(lambda: not (one.sim.open or two.sim.open), SOON)
            assert max(w.sim.generations[0].ended_at for w in (one, two)) - struck < SOON
            await first.until(b"invalid_api_key")
            await second.until(b"invalid_api_key")
        for world in (one, two):
            await world.settled()
            assert (await world.get("/api/tags")).status_code == 401
        rows = await one.ledger()
    assert [row["outcome"] for row in rows] == ["revoked", "revoked"]


@contextlib.asynccontextmanager
async def behind_a_door(database, redis_url):
    """A world whose listener, and nothing else, connects through a door."""
    async with (
        open_door(database) as door,
        open_world(database, redis_url, database_listen_url=door.url) as world,
    ):
        yield world, door


async def shut(world, door):
    """Take the listener's connection away, and let it have no other."""
    door.shut()
    await until(lambda: not world.gateway.revocations.listening)


async def test_while_the_listener_is_down_nothing_is_believed(database, redis_url):
    """No call is served from the cache, live keys are polled, and the cut still comes in time."""
    async with behind_a_door(database, redis_url) as (world, door):
        sibling = await world.keyring.issue("acme", {})
        world.sim.play(SLOW)
        await world.get("/api/tags", sibling)  # proven, and in the cache
        async with calling(world, OPENAI) as caller:
            await caller.until(b"t0")
            await shut(world, door)
            assert (await world.client.get("/readyz")).status_code == 503
            assert (await world.get("/api/tags", sibling)).status_code == 200
            await strike(world, ACTS["disable key"], sibling)
            assert (await world.get("/api/tags", sibling)).status_code == 401
            struck = await strike(world)
            await until(lambda: not world.sim.open, SOON)
            assert world.sim.generations[0].ended_at - struck < SOON
            await caller.until(b"invalid_api_key")
            assert not world.gateway.revocations.listening
            row = await ended(world)
    assert row["outcome"] == "revoked"


async def test_after_the_reconnect_the_cache_serves_again(database, redis_url):
    """The first call reads its row, the next one needs no store, and a revocation cuts at once."""
    async with behind_a_door(database, redis_url) as (world, door):
        await world.get("/api/tags")
        await shut(world, door)
        door.reopen()
        await until(lambda: world.gateway.revocations.listening)
        assert (await world.client.get("/readyz")).status_code == 200
        assert (await world.get("/api/tags")).status_code == 200
        async with locked(world, "gateway.api_keys"):
            with trio.fail_after(PATIENCE):
                assert (await world.get("/api/tags")).status_code == 200, "not from the cache"
        world.sim.play(SLOW)
        async with calling(world, OPENAI) as caller:
            await caller.until(b"t0")
            struck = await strike(world)
            await until(lambda: not world.sim.open, SOON)
            assert world.sim.generations[0].ended_at - struck < SOON


async def test_a_change_that_nobody_heard_is_believed_by_nobody(database, redis_url):
    """Disabled while the listener was away: the cache that the reconnect left behind is empty."""
    async with behind_a_door(database, redis_url) as (world, door):
        await world.get("/api/tags")
        await shut(world, door)
        await strike(world, ACTS["disable key"])
        door.reopen()
        await until(lambda: world.gateway.revocations.listening)
        assert (await world.get("/api/tags")).status_code == 401


KILL_LISTENER = """
SELECT pg_terminate_backend(pid) FROM pg_stat_activity
WHERE datname = current_database() AND pid <> pg_backend_pid()
AND query IN ('SELECT 1', 'LISTEN gateway_changes', 'LISTEN "gateway_changes"')
"""


async def test_a_revocation_that_nobody_heard_is_found_at_the_reconnect(world, stores):
    """Revoked as the listener's connection died: the look at all live keys finds it."""
    world.sim.play(SLOW)
    async with calling(world, WHOLE) as caller:
        await dispatched(world)
        assert len(await world.rows(KILL_LISTENER)) == 1
        await strike(world)
        await caller.until(b"invalid_api_key")
        row = await ended(world)
    await until(lambda: world.gateway.revocations.listening)
    assert (caller.status, row["outcome"]) == (401, "revoked")


async def test_repeats_are_allowed_and_an_unknown_key_is_refused(world):
    """A second revocation is no error; one of a key that is not there is a foreign-key error."""
    await strike(world)
    await strike(world)
    with pytest.raises(Exception, match="revocations"):
        await strike(world, key={"id": "key_unknown"})
    await until_rows(world, "SELECT FROM gateway.revocations")
    assert orjson.loads((await world.get("/v1/models")).content)["error"]["code"] == (
        "invalid_api_key"
    )
