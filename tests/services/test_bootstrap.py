"""The first tenant and key: made once, whoever starts first."""

import trio

from trio_gateway.bootstrap import first_key, is_current
from trio_gateway.services.accounts import Accounts
from trio_gateway.services.tenant_rows import read_installation_secret
from trio_gateway.services.tenants import Tenants

LIMIT = 60


async def test_the_first_start_makes_a_tenant_and_a_key_that_works(database, postgres):
    """Every model, no limits; the second start changes nothing and shows no key."""
    with trio.fail_after(LIMIT):
        name, text = await first_key(database)
        tenants = Tenants(postgres, await read_installation_secret(postgres))
        principal = await tenants.authenticate(text)
        assert (name, principal.tenant.name, principal.key.name) == ("default",) * 3
        assert principal.tenant.all_models
        assert not principal.tenant.allow_cloud
        assert await first_key(database) == ("default", None)


async def test_two_first_starts_make_one_key(database, postgres):
    """Whoever comes second learns the tenant's name alone."""
    made = []

    async def start() -> None:
        made.append(await first_key(database))

    with trio.fail_after(LIMIT):
        async with trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(start)
        assert sorted(text is None for _, text in made) == [False, True, True]
        assert len(await postgres.fetch("SELECT FROM gateway.api_keys")) == 1
        events = await postgres.fetch("SELECT action FROM gateway.admin_events ORDER BY id")
        assert [row["action"] for row in events] == ["tenant.create", "key.create"]


async def test_an_installation_with_tenants_is_left_alone(database, postgres):
    """Even one without any key."""
    with trio.fail_after(LIMIT):
        await Accounts(postgres, "test").create("acme", {})
        assert await first_key(database) == ("acme", None)


async def test_a_database_is_current_only_at_this_release(stores, database, postgres):
    """Neither one that was never migrated nor one of another version is; nor is it touched."""
    with trio.fail_after(LIMIT):
        assert await is_current(database)
        assert not await is_current(stores.database_url)
        await postgres.fetch("UPDATE gateway.alembic_version SET version_num = '0000'")
        assert not await is_current(database)
