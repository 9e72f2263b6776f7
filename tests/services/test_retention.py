"""Partitions of the ledger and the audit log."""

from datetime import UTC, datetime

import pytest

from tests.account import caller, past_row
from trio_gateway.services.ledger.ledger import Ledger
from trio_gateway.services.ledger.retention import Retention

pytestmark = pytest.mark.usefixtures("same_day")
NAMES = (
    "SELECT c.relname FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid"
    " WHERE c.relkind = 'r'"
)


async def names(postgres):
    return {row["relname"] for row in await postgres.fetch(NAMES)}


async def test_next_months_are_made_and_nothing_is_dropped_without_retention(postgres):
    """Partitions that are missing come back; 0 days keep everything."""
    await postgres.fetch("DROP TABLE gateway.ledger_" + f"{datetime.now(UTC):%Y%m}")
    before = await names(postgres)
    assert await Retention(postgres, 0).tend(datetime(2999, 1, 1, tzinfo=UTC)) == []
    assert await names(postgres) == before | {f"ledger_{datetime.now(UTC):%Y%m}"}


async def test_whole_months_past_retention_are_dropped_and_spend_stays(postgres):
    """Rows go with their month; the daily sums they came from do not."""
    await postgres.fetch(
        "CREATE TABLE gateway.ledger_202001 PARTITION OF gateway.ledger"
        " FOR VALUES FROM ('2020-01-01Z') TO ('2020-02-01Z')"
    )
    await postgres.fetch("INSERT INTO gateway.spend VALUES ('t:a', '2020-01-03', 7)")
    dropped = await Retention(postgres, 30).tend(datetime.now(UTC))
    assert dropped == ["ledger_202001"]
    assert (await postgres.fetch("SELECT charged FROM gateway.spend"))[0]["charged"] == 7


async def test_sums_by_the_hour_are_kept_for_weeks_and_those_by_the_day_for_ever(postgres):
    """A row of forty days ago is in the one table alone, one of today in both."""
    one = caller()
    day = 86_400_000_000
    now = int(datetime.now(UTC).timestamp() * 1_000_000)
    await Ledger(postgres).write([past_row(one, 5, now), past_row(one, 7, now - 40 * day)])
    await Retention(postgres, 0).tend(datetime.now(UTC))
    sums = await postgres.fetch_one(
        "SELECT (SELECT sum(charged_tokens) FROM gateway.usage_hourly) AS hourly,"
        " (SELECT sum(charged_tokens) FROM gateway.usage_daily) AS daily"
    )
    assert (sums["hourly"], sums["daily"]) == (5, 12)
