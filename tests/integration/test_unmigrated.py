"""The schema goes away under a running gateway, as in a restore that went wrong."""

from __future__ import annotations

import contextlib

import trio

from tests.dashboard.visitor import visiting
from tests.integration.admin_world import open_admin
from tests.integration.caller import NATIVE, PATIENCE, calling
from trio_gateway.simulator.script import Script

ROLLED_BACK = (
    "SELECT xact_rollback AS so_far FROM pg_stat_database WHERE datname = current_database()"
)
FAILURES = 12  # so many that everybody who asks by itself has asked in vain


@contextlib.asynccontextmanager
async def no_schema(world):
    """Hide the schema while the block runs."""
    await world.rows("ALTER SCHEMA gateway RENAME TO away")
    try:
        yield
    finally:
        await world.rows("ALTER SCHEMA away RENAME TO gateway")


@contextlib.asynccontextmanager
async def missed_often(world):
    """Leave the block once the gateway has asked in vain often."""
    (before,) = await world.rows(ROLLED_BACK)
    yield
    with trio.fail_after(PATIENCE):
        while (await world.rows(ROLLED_BACK))[0]["so_far"] < before["so_far"] + FAILURES:  # noqa: ASYNC110
            await trio.sleep(0.05)


async def test_a_schema_that_is_missing_is_waited_for(world):
    """New calls get 503, no worker ends, and the call that ended meanwhile is charged."""
    stranger = await world.tenant_with_key("stranger")
    world.sim.play(Script(tokens=5, held=True))
    async with calling(world, NATIVE) as caller:
        await caller.until(b"t0")
        async with no_schema(world), missed_often(world):
            answer = await world.post("/api/chat", NATIVE.body(), stranger)
            assert answer.status_code == 503
            assert "migrate" not in answer.text
            world.sim.play()
            await caller.until(b'"done":true')
            assert world.gateway.gate.writer.backlog == 1
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
