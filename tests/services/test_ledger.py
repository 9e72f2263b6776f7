"""The ledger: one row per call, whoever writes it first, and its sums in the same step."""

from dataclasses import replace
from datetime import UTC, date, datetime

import pytest
import trio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.account import caller, one_database, past_row
from tests.proxy import open_door
from trio_gateway.clients.bridge import open_bridge
from trio_gateway.clients.postgres import open_postgres
from trio_gateway.core.domain import Basis, Outcome
from trio_gateway.core.errors import StoreUnavailable
from trio_gateway.services.ledger.ledger import Ledger
from trio_gateway.services.quota.holds import decode_row, encode_row

NOON = int(datetime(2030, 5, 17, 12, tzinfo=UTC).timestamp()) * 1_000_000


@pytest.fixture(scope="module")
def books(stores):
    with one_database(stores) as url:
        yield url


@pytest.fixture
async def postgres(books):
    async with open_bridge() as bridge, open_postgres(bridge, books, size=6) as opened:
        yield opened


@pytest.fixture
def ledger(postgres):
    return Ledger(postgres)


async def spent(postgres, scope):
    rows = await postgres.fetch("SELECT * FROM gateway.spend WHERE scope = $1", scope)
    return {row["period_start"]: row["charged"] for row in rows}


async def test_a_row_comes_back_as_it_went_in(ledger):
    """Every column, also where it holds nothing."""
    row = past_row(caller(), 40, NOON)
    full = replace(
        row,
        request_id="req_full_" + row.request_id,
        outcome=Outcome.UPSTREAM_ERROR,
        basis=Basis.PARTIAL,
        ttft_ms=12.25,
        duration_ms=1234.5,
        batch_id="batch_1",
    )
    bare = replace(row, backend=None, ttft_ms=None, batch_id=None)
    assert await ledger.write([full, bare]) == [full, bare]
    assert await ledger.find([full.request_id, bare.request_id, "req_unknown"]) == {
        full.request_id: full,
        bare.request_id: bare,
    }


@settings(max_examples=8, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.lists(st.integers(0, 4_000_000_000_000_000), min_size=20, max_size=50, unique=True))
async def test_instants_are_exact_to_the_microsecond(books, instants):
    """Every writer of a row must collide with every other: not one microsecond may be lost."""
    async with open_bridge() as bridge, open_postgres(bridge, books) as postgres:
        ledger = Ledger(postgres)
        rows = [past_row(caller(), 0, instant) for instant in instants]
        await ledger.write(rows)
        found = await ledger.find([row.request_id for row in rows])
        assert [found[row.request_id].started_us for row in rows] == instants


async def test_the_first_writer_wins(ledger, postgres):
    """The worker and every sweeper then settle by the same row; the sums are charged once."""
    principal = caller()
    first = past_row(principal, 40, NOON)
    second = replace(first, charged_tokens=7, outcome=Outcome.LOST)
    assert await ledger.write([first]) == [first]
    assert await ledger.write([second]) == [first]
    assert await spent(postgres, f"k:{principal.key.id}") == {date(2030, 5, 17): 40}


async def test_new_and_known_rows_may_be_mixed(ledger, postgres):
    """They come back in the order given, each as it is stored."""
    principal = caller()
    rows = [past_row(principal, units, NOON + units) for units in (1, 2, 3, 4)]
    await ledger.write([rows[1], rows[3]])
    again = [replace(row, charged_tokens=100) for row in rows]
    assert await ledger.write(again) == [again[0], rows[1], again[2], rows[3]]
    assert await spent(postgres, f"t:{principal.tenant.id}") == {date(2030, 5, 17): 206}


async def test_sums_are_kept_per_scope_and_utc_day(ledger, postgres):
    """A row counts for the day on which its call began."""
    first = caller()
    second = caller(tenant_id=first.tenant.id)
    midnight = NOON + 12 * 3_600_000_000
    rows = [
        past_row(first, 10, midnight - 1),
        past_row(second, 20, midnight - 1),
        past_row(first, 30, midnight),
    ]
    await ledger.write(rows)
    today, tomorrow = date(2030, 5, 17), date(2030, 5, 18)
    assert await spent(postgres, f"t:{first.tenant.id}") == {today: 30, tomorrow: 30}
    assert await spent(postgres, f"k:{first.key.id}") == {today: 10, tomorrow: 30}
    assert await spent(postgres, f"k:{second.key.id}") == {today: 20}


async def test_a_row_that_charges_nothing_makes_no_sum(ledger, postgres):
    """The table of sums grows with what was spent, not with what was refused."""
    principal = caller()
    await ledger.write([past_row(principal, 0, NOON)])
    assert await spent(postgres, f"t:{principal.tenant.id}") == {}


async def test_writers_who_share_rows_do_not_deadlock(ledger, postgres):
    """Groups with the same rows in opposite orders are all stored, every row once."""
    principals = [caller() for _ in range(4)]
    rows = [past_row(principals[at % 4], 1, NOON + at) for at in range(400)]
    written = []

    async def write(group):
        written.append(await ledger.write(group))

    for start in range(0, 400, 100):
        group = rows[start : start + 100]
        async with trio.open_nursery() as nursery:
            for order in (1, -1, 1, -1):
                nursery.start_soon(write, group[::order])
    assert {len(group) for group in written} == {100}
    for principal in principals:
        assert await spent(postgres, f"t:{principal.tenant.id}") == {date(2030, 5, 17): 100}


async def test_a_lost_answer_to_the_commit_is_no_harm(books, postgres):
    """The row went in, the worker did not hear of it: writing again stores nothing twice."""
    principal = caller()
    row = past_row(principal, 40, NOON)
    async with (
        open_door(books) as door,
        open_bridge() as bridge,
        open_postgres(bridge, door.url) as through,
    ):
        ledger = Ledger(through)
        await ledger.write([past_row(caller(), 1, NOON)])  # the statement is prepared now

        async def write():
            with pytest.raises(StoreUnavailable):
                await ledger.write([row])

        door.swallow()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(write)
            await door.swallowed.wait()
            door.cut()
        assert await Ledger(postgres).find([row.request_id]) == {row.request_id: row}
        door.reopen()
        assert await ledger.write([replace(row, charged_tokens=99)]) == [row]
    assert await spent(postgres, f"t:{principal.tenant.id}") == {date(2030, 5, 17): 40}


def test_a_row_travels_inside_a_hold():
    """What a sweeper decodes is what the worker encoded."""
    row = replace(past_row(caller(), 40, NOON), ttft_ms=0.1, batch_id="batch_1")
    assert decode_row(encode_row(row)) == row
