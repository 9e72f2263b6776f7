"""Sums by the hour and the day: they are the ledger's, whoever wrote it."""

from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from typing import Any

import pytest
import trio

from tests.account import caller, past_row
from trio_gateway.core.domain import Outcome
from trio_gateway.services.ledger.ledger import Ledger
from trio_gateway.services.usage import Usage, last_days, last_hours, percentile

NOON = datetime(2030, 5, 17, 12, tzinfo=UTC)
NOON_US = int(NOON.timestamp()) * 1_000_000
HOUR_US = 3600 * 1_000_000
AGREE = """
SELECT count(*) AS differences FROM (
    (SELECT (started_at AT TIME ZONE 'UTC')::date AS day, tenant_id, model, outcome,
        count(*)::numeric AS requests, sum(charged_tokens) AS charged FROM gateway.ledger
     GROUP BY 1, 2, 3, 4)
    EXCEPT
    (SELECT day, tenant_id, model, outcome, requests, charged_tokens FROM gateway.usage_daily)
) AS x
"""


async def test_many_writers_at_once_leave_the_sums_of_their_rows(postgres):
    """Groups that share scopes and hours add up, none twice and none lost, without a deadlock."""
    ledger = Ledger(postgres)
    callers = [caller() for _ in range(3)]

    async def write(start):
        rows = [past_row(callers[n % 3], n, NOON_US + n * HOUR_US // 7) for n in range(40)]
        await ledger.write(rows[start:] + rows[:start])

    async with trio.open_nursery() as nursery:
        for start in range(8):
            nursery.start_soon(write, start * 5)
    assert (await postgres.fetch(AGREE))[0]["differences"] == 0
    sums = await postgres.fetch_one(
        "SELECT (SELECT sum(requests) FROM gateway.usage_hourly) AS hourly,"
        " (SELECT sum(requests) FROM gateway.usage_daily) AS daily,"
        " (SELECT sum(requests) / 6 FROM gateway.usage_totals) AS totals,"
        " (SELECT count(*) FROM gateway.ledger) AS rows"
    )
    assert sums["hourly"] == sums["daily"] == sums["totals"] == sums["rows"]
    usage = Usage(postgres)
    bounds = (NOON - timedelta(days=1), NOON + timedelta(days=5))
    for unit in ("hour", "day"):
        for by in ("model", "outcome", "tenant"):
            whole = await usage.series(by, *bounds, unit=unit, most=100)
            parts = [
                row
                for one in callers
                for row in await usage.series(by, *bounds, unit=unit, tenant_id=one.tenant.id)
            ]
            assert _summed(whole) == _summed(parts)


def _summed(rows: list[dict[str, Any]]) -> dict[Any, int]:
    """Add rows of the same time and name."""
    found: dict[Any, int] = {}
    for row in rows:
        key = row["at"], row["name"]
        found[key] = found.get(key, 0) + row["charged_tokens"]
    return found


async def test_a_row_written_twice_is_counted_once(postgres):
    """What the ledger ignores, the sums ignore."""
    ledger = Ledger(postgres)
    row = past_row(caller(), 5, NOON_US)
    await ledger.write([row])
    await ledger.write([replace(row, charged_tokens=99)])
    totals = await Usage(postgres).totals(NOON, NOON + timedelta(hours=1))
    assert (totals["requests"], totals["charged_tokens"]) == (1, row.charged_tokens)


async def test_totals_count_failures_and_read_the_time_to_first_token(postgres):
    """A stream that broke after its 200 is a failure; percentiles come from the steps."""
    one = caller()
    rows = [
        replace(past_row(one, n, NOON_US), ttft_ms=50.0 if n < 9 else 2500.0) for n in range(10)
    ]
    rows.append(
        replace(past_row(one, 10, NOON_US), status_code=200, outcome=Outcome.UPSTREAM_ERROR)
    )
    await Ledger(postgres).write(rows)
    totals = await Usage(postgres).totals(NOON, NOON + timedelta(hours=1))
    assert (totals["requests"], totals["failures"]) == (11, 1)
    assert totals["outcomes"] == {"completed": 10, "upstream_error": 1}
    assert totals["ttft_p50_ms"] < 100 < 1000 < totals["ttft_p95_ms"] < 3000


async def test_a_series_names_the_greatest_and_sums_the_rest(postgres):
    """Past `most` names everything is one row without a name; a tenant has its label."""
    rows = [
        replace(past_row(caller(), n, NOON_US), model=f"m{n}:latest", charged_tokens=n)
        for n in range(1, 6)
    ]
    await Ledger(postgres).write(rows)
    usage = Usage(postgres)
    bounds = (NOON.replace(hour=0), NOON.replace(hour=0) + timedelta(days=1))
    found = await usage.series("model", *bounds, most=2)
    assert [(row["name"], row["charged_tokens"]) for row in found] == [
        ("m4:latest", 4),
        ("m5:latest", 5),
        (None, 6),
    ]
    assert found[0]["at"] == date(2030, 5, 17)
    hourly = await usage.series("outcome", NOON, NOON + timedelta(hours=1), unit="hour")
    assert [(row["at"], row["name"], row["requests"]) for row in hourly] == [(NOON, "completed", 5)]


@pytest.mark.parametrize(("share", "expected"), [(0.5, 30 + 70 / 9 * 5), (0.9, 100), (1.0, 3000)])
def test_a_percentile_lies_between_two_steps(share, expected):
    """Nine within 100 ms, one within 3 s."""
    sums = {
        "ttft_count": 10,
        "ttft_10": 0,
        "ttft_30": 0,
        "ttft_100": 9,
        "ttft_300": 9,
        "ttft_1000": 9,
        "ttft_3000": 10,
    }
    assert percentile(sums | {"ttft_10000": 10}, share) == pytest.approx(expected)


def test_bounds_take_the_running_hour_and_day_in():
    """Both end where the running hour or day does."""
    now = datetime(2030, 5, 17, 12, 34, tzinfo=UTC)
    assert last_hours(24, now) == (
        datetime(2030, 5, 16, 13, tzinfo=UTC),
        datetime(2030, 5, 17, 13, tzinfo=UTC),
    )
    assert last_days(2, now) == (
        datetime(2030, 5, 16, tzinfo=UTC),
        datetime(2030, 5, 18, tzinfo=UTC),
    )
