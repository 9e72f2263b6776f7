"""What PostgreSQL says no to, by the project's names."""

from urllib.parse import urlsplit, urlunsplit

import pytest

from trio_gateway.clients.bridge import open_bridge
from trio_gateway.clients.postgres import (
    InsufficientPrivilege,
    NotMigrated,
    Unstorable,
    open_postgres,
)
from trio_gateway.core.errors import StoreUnavailable


@pytest.mark.parametrize(
    ("query", "name"),
    [
        ("INSERT INTO gateway.tenants (id, name) VALUES ('t1', NULL)", "NotNullViolationError"),
        ("DO $$ BEGIN RAISE check_violation; END $$", "CheckViolationError"),
        ("SELECT 1099511627776::bigint::int", "NumericValueOutOfRangeError"),
        (r"""SELECT '"\u0000"'::jsonb ->> 0""", "UntranslatableCharacterError"),
    ],
)
async def test_what_it_will_never_take_is_told_from_a_store_in_trouble(postgres, query, name):
    """By the error's name alone: its text may quote the row."""
    with pytest.raises(Unstorable, match=f"^{name}$"):
        await postgres.fetch(query)


async def test_a_missing_schema_is_out_of_reach_and_says_so_to_operators_alone(postgres):
    """Whoever waits for PostgreSQL waits for its migrations, too."""
    with pytest.raises(StoreUnavailable) as caught:
        await postgres.fetch("SELECT 1 FROM gateway.nothing")
    assert isinstance(caught.value, NotMigrated)
    assert "migrate" in str(caught.value)
    assert caught.value.message == StoreUnavailable().message


async def test_a_privilege_that_was_taken_away_may_be_given_back(postgres, database):
    """Nothing is wrong with the query: it may be tried again."""
    name = "limited_" + urlsplit(database).path.strip("/")
    await postgres.fetch(f"CREATE ROLE {name} LOGIN PASSWORD 'hidden'")
    try:
        parts = urlsplit(database)
        netloc = f"{name}:hidden@{parts.netloc.rpartition('@')[2]}"
        url = urlunsplit(parts._replace(netloc=netloc))
        async with open_bridge() as bridge, open_postgres(bridge, url, size=1) as limited:
            with pytest.raises(StoreUnavailable) as caught:
                await limited.fetch("SELECT 1 FROM gateway.tenants")
    finally:
        await postgres.fetch(f"DROP ROLE {name}")
    assert isinstance(caught.value, InsufficientPrivilege)
    assert "privilege" in str(caught.value)
