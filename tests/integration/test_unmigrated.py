"""The schema goes away under a running gateway, as in a restore that went wrong."""

from __future__ import annotations

import contextlib

from tests.dashboard.visitor import visiting
from tests.integration.admin_world import open_admin
from tests.integration.caller import NATIVE, calling, until
from tests.world import open_world
from trio_gateway.simulator.script import Script

SWEEP = 0.5  # seconds; everybody else who asks by itself does so at least once a second
TURNS = 3.0  # seconds in which everybody has asked in vain


@contextlib.asynccontextmanager
async def no_schema(world):
    """Hide the schema while the block runs."""
    await world.rows("ALTER SCHEMA gateway RENAME TO away")
    try:
        yield
    finally:
        await world.rows("ALTER SCHEMA away RENAME TO gateway")


async def test_a_schema_that_is_missing_is_waited_for(database, redis_url):
    """New calls get 503, no worker ends, and the call that ended meanwhile is charged."""
    async with open_world(database, redis_url, sweep_interval=SWEEP) as world:
        stranger = await world.tenant_with_key("stranger")
        writer = world.gateway.gate.writer
        world.sim.play(Script(tokens=5, held=True))
        async with calling(world, NATIVE) as caller:
            await caller.until(b"t0")
            async with no_schema(world):
                answer = await world.post("/api/chat", NATIVE.body(), stranger)
                assert answer.status_code == 503
                assert "migrate" not in answer.text
                world.sim.play()
                await caller.until(b'"done":true')
                await until(lambda: writer.waited > TURNS)
                assert writer.backlog == 1
        assert (await world.post("/api/chat", NATIVE.body(), stranger)).status_code == 200
        assert [row["outcome"] for row in await world.ledger()] == ["completed", "completed"]


async def test_operators_are_told_to_migrate(world):
    """By the API, and by any page to whoever is signed in; not that PostgreSQL is away."""
    async with open_admin(world) as admin, visiting(admin) as visitor:
        headers = await admin.auth()
        async with no_schema(world):
            answer = await admin.client.get("/admin/v1/tenants", headers=headers)
            assert (answer.status_code, answer.json()["error"]["code"]) == (
                503,
                "store_unavailable",
            )
            assert "run migrations" in answer.json()["error"]["message"]
            page = await visitor.see("/tenants", 503)
            assert "trio-gateway migrate" in page
