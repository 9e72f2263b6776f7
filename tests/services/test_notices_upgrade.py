"""From the release before to this one, with rows in place: nothing is lost, sums are made up."""

import asyncio
from datetime import UTC, datetime

import pytest
import trio
from alembic import command
from sqlalchemy import text
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.pool import NullPool

from tests.account import caller, past_row
from trio_gateway import migrate
from trio_gateway.clients.bridge import open_bridge
from trio_gateway.clients.postgres import connect, open_postgres, run_once
from trio_gateway.services.ledger.ledger import Ledger
from trio_gateway.services.notices.notices import Notices

LIMIT = 90
pytestmark = pytest.mark.usefixtures("same_day")
TENANTS = """
INSERT INTO gateway.tenants (id, name, budget, budget_period)
SELECT 'ten_' || n, 't' || n, 10 ^ 9, 'total' FROM generate_series(0, 2) n
"""
KEYS = """
INSERT INTO gateway.api_keys (id, tenant_id, public_id, hash)
SELECT 'key_' || n, 'ten_0', 'p' || n, 'x' FROM generate_series(0, 4) n
"""
ROWS = """
INSERT INTO gateway.ledger
SELECT 'req_' || n, 'ten_' || n % 3, 'key_' || n % 5, '/api/chat', 'm' || n % 2,
    CASE n % 7 WHEN 0 THEN 502 ELSE 200 END,
    CASE n % 7 WHEN 0 THEN 'upstream_error' ELSE 'completed' END,
    'final', n, 2 * n, 3 * n, 4 * n, 'b', now() - n * interval '5 hours',
    CASE n % 7 WHEN 0 THEN NULL ELSE n END, 10 * n
FROM generate_series(1, 500) n
"""
SPEND = """
INSERT INTO gateway.spend
SELECT scope, (started_at AT TIME ZONE 'UTC')::date, sum(charged_tokens) FROM gateway.ledger,
    LATERAL (VALUES ('t:' || tenant_id), ('k:' || key_id)) s (scope) GROUP BY 1, 2
"""
SUMS = """
SELECT tenant_id, model, outcome, count(*) AS requests,
    count(*) FILTER (WHERE status_code >= 500) AS failures,
    sum(prompt_tokens)::bigint AS prompt_tokens,
    sum(completion_tokens)::bigint AS completion_tokens,
    sum(charged_tokens)::bigint AS charged_tokens, count(ttft_ms) AS ttft_count,
    coalesce(sum(ttft_ms), 0) AS ttft_ms, count(*) FILTER (WHERE ttft_ms <= 100) AS ttft_100,
    count(*) FILTER (WHERE ttft_ms <= 300) AS ttft_300, {start} AS start
FROM gateway.ledger GROUP BY tenant_id, model, outcome, start ORDER BY 1, 2, 3, start
"""
STARTS = {
    "day": "(started_at AT TIME ZONE 'UTC')::date",
    "hour": "date_trunc('hour', started_at AT TIME ZONE 'UTC') AT TIME ZONE 'UTC'",
}


def at_0002(url):
    """Bring an empty database to the release that had batches and no more."""

    def run(connection):
        connection.execute(text("CREATE SCHEMA gateway"))
        config = migrate._config()
        config.attributes["connection"] = connection
        command.upgrade(config, "0002")
        connection.execute(
            text("INSERT INTO gateway.installation (key_secret) VALUES (repeat('x', 32)::bytea)")
        )

    async def upgrade():
        engine = create_async_engine(
            "postgresql+asyncpg://", async_creator=lambda: connect(url), poolclass=NullPool
        )
        async with engine.begin() as connection:
            await connection.run_sync(run)
        await engine.dispose()

    asyncio.run(upgrade())


@pytest.fixture
def upgraded(stores):
    """A database that was filled at 0002, and then migrated."""
    name = "upgraded_from_0002"
    asyncio.run(run_once(stores.database_url, f"CREATE DATABASE {name}"))
    try:
        url = stores.database(name)
        at_0002(url)
        for query in (TENANTS, KEYS, ROWS, SPEND):
            asyncio.run(run_once(url, query))
        assert migrate.upgrade(url) == migrate.head()
        yield url
    finally:
        asyncio.run(run_once(stores.database_url, f"DROP DATABASE {name} WITH (FORCE)"))


async def test_an_upgrade_keeps_the_rows_and_makes_up_their_sums(upgraded):
    """Usage by hour and by day equals the ledger, before and after a row of the new release."""
    with trio.fail_after(LIMIT):
        async with open_bridge() as bridge, open_postgres(bridge, upgraded, size=2) as postgres:
            for extra in range(2):
                for each, start in STARTS.items():
                    table = {"day": "usage_daily", "hour": "usage_hourly"}[each]
                    expected = await postgres.fetch(SUMS.format(start=start))
                    columns = ", ".join(list(expected[0].keys())[:-1])
                    found = await postgres.fetch(
                        f"SELECT {columns}, {each} AS start FROM gateway.{table}"
                        " ORDER BY tenant_id, model, outcome, start"
                    )
                    assert [dict(row) for row in found] == [dict(row) for row in expected]
                    assert sum(row["requests"] for row in found) == 500 + extra
                now = int(datetime.now(UTC).timestamp() * 1_000_000)
                who = caller(tenant_id="ten_0", key_id="key_0")
                await Ledger(postgres).write([past_row(who, 5, now)])


async def test_what_was_spent_before_the_upgrade_is_noticed_at_the_next_call(upgraded):
    """Budgets and sums are as they were, without an increase; only calls bring notices."""
    with trio.fail_after(LIMIT):
        async with open_bridge() as bridge, open_postgres(bridge, upgraded, size=2) as postgres:
            notices = Notices(postgres)
            assert await notices.listing() == []
            (row,) = await postgres.fetch(
                "UPDATE gateway.tenants t SET budget = s.charged + 10 FROM (SELECT sum(charged)"
                " AS charged FROM gateway.spend WHERE scope = 't:ten_1') s WHERE id = 'ten_1'"
                " RETURNING budget, budget_extra"
            )
            assert row["budget_extra"] is None
            now = int(datetime.now(UTC).timestamp() * 1_000_000)
            who = caller(tenant_id="ten_1", key_id="key_1")
            await Ledger(postgres).write([past_row(who, 1, now)])
            (found,) = await notices.current()
            assert (found["tenant"], found["threshold"]) == ("t1", 80)
            assert (found["budget"], found["spent"]) == (row["budget"], row["budget"] - 9)
