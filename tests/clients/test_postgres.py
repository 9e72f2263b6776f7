"""The PostgreSQL client: errors by the project's names, a pool that heals, and LISTEN."""

import asyncio

import pytest
import trio

from tests.proxy import open_door
from trio_gateway.clients import postgres as client
from trio_gateway.clients.bridge import open_bridge
from trio_gateway.clients.postgres import (
    Duplicate,
    Missing,
    NotMigrated,
    Overdue,
    open_listener,
    open_postgres,
    run_once,
    within,
)
from trio_gateway.core.errors import StoreUnavailable

TENANT = "INSERT INTO gateway.tenants (id, name) VALUES ($1, $2)"
REVOKE = "INSERT INTO gateway.revocations (key_id) VALUES ($1)"


async def test_a_query_returns_its_rows(postgres):
    """All of them, the first one, or none."""
    assert [row[0] for row in await postgres.fetch("SELECT generate_series(1, 3)")] == [1, 2, 3]
    assert (await postgres.fetch_one("SELECT $1::int + 1 AS n", 4))["n"] == 5
    assert await postgres.fetch_one("SELECT 1 WHERE false") is None


async def test_an_operation_runs_on_one_connection(postgres):
    """With its arguments, and its answer comes back."""

    async def twice(connection, number):
        first = await connection.fetchval("SELECT pg_backend_pid()")
        return first == await connection.fetchval("SELECT pg_backend_pid()"), number

    assert await postgres.run(twice, 7) == (True, 7)


async def test_a_transaction_is_whole_or_nothing(postgres):
    """What a failed operation had written is not there."""

    async def add(connection, name, *, fail):
        await connection.execute(TENANT, name, name)
        if fail:
            raise LookupError

    def failing(connection, name):
        return add(connection, name, fail=True)

    def working(connection, name):
        return add(connection, name, fail=False)

    with pytest.raises(LookupError):
        await postgres.transact(failing, "a")
    await postgres.transact(working, "b")
    assert [row["id"] for row in await postgres.fetch("SELECT id FROM gateway.tenants")] == ["b"]


async def test_refusals_have_names(postgres):
    """A constraint that refuses is named; what is missing is a migration."""
    await postgres.fetch(TENANT, "t1", "acme")
    with pytest.raises(Duplicate, match="tenants_name_key"):
        await postgres.fetch(TENANT, "t2", "acme")
    with pytest.raises(Missing, match="revocations_key_id_fkey"):
        await postgres.fetch(REVOKE, "nobody")
    for query in (
        "SELECT 1 FROM gateway.nothing",
        "SELECT nothing FROM gateway.tenants",
        "CREATE TABLE nowhere.t (n int)",
    ):
        with pytest.raises(NotMigrated):
            await postgres.fetch(query)


@pytest.mark.parametrize(
    "text",
    [
        "RAISE serialization_failure",
        "RAISE deadlock_detected",
        "RAISE admin_shutdown",
        "RAISE cannot_connect_now",
        "RAISE disk_full",
        "RAISE io_error",
        "RAISE read_only_sql_transaction",
    ],
)
async def test_a_server_in_trouble_is_out_of_reach(postgres, text):
    """Nothing is wrong with the query: it may be tried again."""
    with pytest.raises(StoreUnavailable):
        await postgres.fetch(f"DO $$ BEGIN {text}; END $$")


async def test_the_pool_heals_when_the_server_is_back(database):
    """Broken connections are replaced; while it is away every query is StoreUnavailable."""
    async with (
        open_door(database) as door,
        open_bridge() as bridge,
        open_postgres(bridge, door.url, size=2) as postgres,
    ):
        await postgres.fetch("SELECT 1")
        door.shut()
        for _ in range(3):
            with pytest.raises(StoreUnavailable):
                await postgres.fetch("SELECT 1")
        with pytest.raises(StoreUnavailable):
            await postgres.run(_one)
        door.reopen()
        assert await postgres.run(_one) == 1


async def _one(connection):
    return await connection.fetchval("SELECT 1")


async def test_a_connection_that_an_operator_ends_is_out_of_reach_once(postgres):
    """pg_terminate_backend: one query fails, the next has a new connection."""
    pid = (await postgres.fetch_one("SELECT pg_backend_pid() AS pid"))["pid"]
    await trio.to_thread.run_sync(lambda: None)
    with pytest.raises(StoreUnavailable):
        await postgres.fetch("SELECT pg_terminate_backend(pg_backend_pid())")
    assert (await postgres.fetch_one("SELECT pg_backend_pid() AS pid"))["pid"] != pid


@pytest.mark.parametrize("way", ["fetch", "run", "transact", "glance"])
async def test_a_server_that_hangs_is_out_of_reach_in_time(database, monkeypatch, way):
    """Nobody waits for the end of a cancel, which the client's own limits alone would bring."""
    monkeypatch.setattr(client, "CONNECT_LIMIT", 600.0)
    monkeypatch.setattr(client, "COMMAND_LIMIT", 600.0)
    async with (
        open_door(database) as door,
        open_bridge() as bridge,
        open_postgres(bridge, door.url, size=1) as postgres,
    ):
        asked = {
            "fetch": lambda: postgres.fetch("SELECT 1"),
            "run": lambda: postgres.run(_one),
            "transact": lambda: postgres.transact(_one),
            "glance": lambda: postgres.glance(0.2, "SELECT 1"),
        }
        await asked["run"]()
        door.swallow()
        with trio.fail_after(60), pytest.raises(Overdue), within(60 if way == "glance" else 0.2):
            await asked[way]()


async def test_all_that_is_asked_within_a_bound_shares_it(database):
    """An answer in time is handed on, errors are, and the connection is good afterwards."""
    async with open_bridge() as bridge, open_postgres(bridge, database, size=1) as postgres:
        with within(60):
            assert await postgres.run(_one) == 1
            with pytest.raises(NotMigrated):
                await postgres.fetch("SELECT 1 FROM gateway.nothing")
        with pytest.raises(Overdue), within(0.2):
            while True:
                await postgres.fetch("SELECT pg_sleep(0.01)")
        assert await postgres.run(_one) == 1


async def test_what_is_left_behind_ends_nothing_else(database, postgres):
    """Whoever asks goes away, and then the server ends the connection: the loop lives on."""
    async with (
        open_door(database) as door,
        open_bridge() as bridge,
        open_postgres(bridge, door.url, size=1) as other,
    ):
        pid = (await other.fetch("SELECT pg_backend_pid() AS pid"))[0]["pid"]
        async with trio.open_nursery() as nursery:
            nursery.start_soon(other.glance, 60, "SELECT pg_sleep(60)")
            await _until(
                postgres,
                "SELECT 1 FROM pg_stat_activity WHERE pid = $1 AND wait_event = 'PgSleep'",
                pid,
            )
            nursery.cancel_scope.cancel()
        await postgres.fetch("SELECT pg_terminate_backend($1)", pid)
        with trio.fail_after(60):
            assert await other.run(_one) == 1


async def _until(postgres, query, *args):
    with trio.fail_after(60):
        while not await postgres.fetch(query, *args):
            pass


async def test_an_unknown_database_is_out_of_reach(stores):
    """A wrong name shows at first use, as an unreachable server does."""
    async with (
        open_bridge() as bridge,
        open_postgres(bridge, stores.database("no_such_database")) as postgres,
    ):
        with pytest.raises(StoreUnavailable):
            await postgres.fetch("SELECT 1")


@pytest.mark.parametrize("dsn", ["http://x/y", "host=x dbname=y", "postgresql"])
async def test_a_bad_address_is_refused_at_once(dsn):
    """In one sentence, that does not echo it."""
    async with open_bridge() as bridge:
        with pytest.raises(ValueError, match=r"^DATABASE_URL is not a PostgreSQL address$"):
            async with open_postgres(bridge, dsn):
                pass


async def test_a_listener_hears_and_beats_and_knows_when_it_is_lost(database, postgres):
    """Messages come in order; a dead connection is told of, and beats fail."""
    heard, lost = [], trio.Event()
    second = trio.Event()

    def deliver(payload):
        heard.append(payload)
        if len(heard) == 2:
            second.set()

    async with (
        open_door(database) as door,
        open_bridge() as bridge,
        open_listener(bridge, door.url, "news", deliver, lost.set) as listener,
    ):
        for text in ("one", "two"):
            await postgres.fetch("SELECT pg_notify('news', $1)", text)
        with trio.fail_after(20):
            await second.wait()
        assert heard == ["one", "two"]
        await listener.beat(20)
        door.swallow()
        with pytest.raises(StoreUnavailable):
            await listener.beat(0.05)
        door.shut()
        with trio.fail_after(20):
            await lost.wait()
        with pytest.raises(StoreUnavailable):
            await listener.beat(1)


async def test_listening_where_nobody_answers_is_out_of_reach(database):
    """It raises instead of waiting."""
    async with open_door(database) as door, open_bridge() as bridge:
        door.shut()
        with pytest.raises(StoreUnavailable):
            async with open_listener(bridge, door.url, "news", print, print):
                pass


def test_a_tool_may_run_one_query_on_its_own(database):
    """Outside of Trio, for plain code."""
    assert asyncio.run(run_once(database, "SELECT $1::int AS n", 3))[0]["n"] == 3
