"""Instants there and back, whatever PostgreSQL holds."""

from datetime import UTC, datetime, timedelta, timezone

import pytest


@pytest.mark.parametrize(
    "text",
    ["infinity", "-infinity", "294276-12-31", "4713-01-01 BC", "0001-01-01", "9999-12-31"],
)
async def test_every_instant_that_is_stored_can_be_read_and_written_back(postgres, text):
    """Whatever a timestamptz holds, it comes with its zone, and as one that compares."""
    row = await postgres.fetch_one("SELECT $1::text::timestamptz AS at", text)
    now = datetime.now(UTC)
    later = text in {"infinity", "294276-12-31", "9999-12-31"}
    assert (row["at"] > now) is later
    assert row["at"].astimezone(UTC).isoformat() == row["at"].isoformat()
    again = await postgres.fetch_one(
        "SELECT $1::timestamptz = $2::text::timestamptz AS same, ($3::timestamptz[])[1] AS listed",
        row["at"],
        text,
        [row["at"]],
    )
    assert again["same"] is ("infinity" in text or text == "9999-12-31")
    assert again["listed"] == row["at"]


async def test_an_instant_of_any_zone_is_the_same_there_and_back(postgres):
    """To the microsecond."""
    at = datetime(2031, 5, 6, 7, 8, 9, 123457, tzinfo=timezone(timedelta(hours=5, minutes=45)))
    for instant in (at, at.replace(year=1931), datetime(1999, 12, 31, 23, 59, 59, 1, tzinfo=UTC)):
        row = await postgres.fetch_one("SELECT $1::timestamptz AS at", instant)
        assert (row["at"], row["at"].tzinfo) == (instant, UTC)
