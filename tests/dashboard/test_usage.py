"""Usage as its page tells it: calendar months, keys of a tenant, tenants that are gone."""

from __future__ import annotations

import csv
import html
import io
import re
from datetime import UTC, date, datetime, time, timedelta

import pytest

from tests.dashboard.visitor import words
from trio_gateway.core.domain import Basis, LedgerRow, Outcome
from trio_gateway.services.account_rows import Refused
from trio_gateway.services.ledger.ledger import Ledger
from trio_gateway.web.admin.dashboard.spans import offered, span_of

pytestmark = pytest.mark.usefixtures("same_day")


@pytest.fixture
def charge(world):
    """Book a call of so many tokens at an instant."""

    async def book(key, tokens, at):
        row = LedgerRow(
            request_id=f"req_{key['id']}_{at.timestamp():.0f}",
            tenant_id=key["tenant_id"],
            key_id=key["id"],
            endpoint="/api/chat",
            model="llama3.2:latest",
            status_code=200,
            outcome=Outcome.COMPLETED,
            basis=Basis.FINAL,
            prompt_tokens=tokens,
            completion_tokens=0,
            charged_tokens=tokens,
            held_tokens=tokens,
            backend=None,
            started_us=int(at.timestamp() * 1_000_000),
            ttft_ms=None,
            duration_ms=1.0,
        )
        await Ledger(world.postgres).write([row])

    return book


def first_of(at):
    return at.replace(day=1, hour=0, minute=0, second=0, microsecond=0)


@pytest.mark.parametrize(
    ("now", "name", "since", "until", "title"),
    [
        ((2030, 3, 15, 9), "2030-03", (2030, 3, 1), (2030, 3, 16), "March 2030, so far"),
        ((2030, 3, 31, 9), "2030-03", (2030, 3, 1), (2030, 4, 1), "March 2030, so far"),
        ((2030, 4, 1, 0), "2030-03", (2030, 3, 1), (2030, 4, 1), "March 2030"),
        ((2030, 1, 1, 0), "2029-12", (2029, 12, 1), (2030, 1, 1), "December 2029"),
        ((2030, 1, 1, 0), "2028-02", (2028, 2, 1), (2028, 3, 1), "February 2028"),
        ((2030, 3, 15, 9), "7d", (2030, 3, 9), (2030, 3, 16), "Last 7 days"),
    ],
)
def test_a_month_is_that_of_the_calendar(now, name, since, until, title):
    """From its first day to that of the next one, in UTC; the present one up to today."""
    day, hour = date(*now[:3]), time(now[3])
    span = span_of(name, datetime.combine(day, hour, UTC))
    assert span.bounds == tuple(
        datetime.combine(date(*each), time(), UTC) for each in (since, until)
    )
    assert (span.title, span.unit) == (title, "day")


@pytest.mark.parametrize("name", ["2030-04", "2030-13", "0000-01", "2019-12", "month", ""])
def test_a_month_that_is_not_over_or_not_there_is_refused(name):
    """Of the future, or before there was anything, or none at all."""
    with pytest.raises(Refused):
        span_of(name, datetime(2030, 3, 31, tzinfo=UTC))


def test_this_month_and_those_before_are_offered():
    """Beside the rolling spans, over the turn of the year."""
    names = [span.name for span in offered(datetime(2030, 2, 3, tzinfo=UTC))]
    assert names[:6] == ["24h", "72h", "7d", "30d", "90d", "365d"]
    assert names[6:9] == ["2030-02", "2030-01", "2029-12"]
    assert (len(names), names[-1]) == (19, "2029-02")


async def test_an_invoice_has_its_month_and_nothing_else(world, visitor, charge):
    """Page, sums and calls of the last month, named after it."""
    this = first_of(datetime.now(UTC))
    last = first_of(this - timedelta(days=1))
    for tokens, at in ((1, this), (10, last), (100, this - timedelta(seconds=1)),
                       (1000, last - timedelta(seconds=1))):  # fmt: skip
        await charge(world.key, tokens, at)
    name = f"{last:%Y-%m}"
    text = await visitor.see(f"/usage?span={name}&by=tenant")
    assert "110 tokens charged in all" in words(text)
    answer = await visitor.get(f"/usage.csv?span={name}&by=tenant")
    assert f'filename="usage-by-tenant-{name}.csv"' in answer.headers["content-disposition"]
    rows = list(csv.DictReader(io.StringIO(answer.text)))
    assert {(row["label"], row["charged_tokens"]) for row in rows} == {
        ("acme", "10"),
        ("acme", "100"),
    }
    (where,) = re.findall(r'href="(/ledger\.csv[^"]+)"', text)
    calls = list(csv.DictReader(io.StringIO((await visitor.get(html.unescape(where))).text)))
    assert sorted(int(row["charged_tokens"]) for row in calls) == [10, 100]


async def test_keys_of_a_tenant_are_summed_by_the_day(world, visitor, charge):
    """The same charges as the tenant's own, split by key; other tenants' keys are not there."""
    now = datetime.now(UTC)
    named = await world.keyring.issue("acme", {"name": "laptop"})
    other = await world.tenant_with_key("lab")
    await charge(named, 40, now)
    await charge(named, 2, now - timedelta(days=2))
    await charge(world.key, 7, now)
    await charge(other, 500, now)
    text = await visitor.see("/usage?by=key&span=7d&tenant=acme")
    assert "49 tokens charged in all" in words(text)
    sums = re.findall(r'<a href="/keys/([^"]+)">([^<]+)</a></th><td class="num">(\d+)<', text)
    assert sums == [(named["id"], "laptop", "42"), (world.key["id"], world.key["id"], "7")]
    answer = await visitor.get("/usage.csv?by=key&span=7d&tenant=acme")
    assert {(row["label"], row["charged_tokens"]) for row in
            csv.DictReader(io.StringIO(answer.text))} == {
        ("laptop", "40"), ("laptop", "2"), (world.key["id"], "7")}  # fmt: skip


async def test_more_keys_than_colors_are_summed_as_one(world, visitor, charge):
    """The greatest by name, the rest as all others."""
    for number in range(9):
        key = await world.keyring.issue("acme", {"name": f"k{number}"})
        await charge(key, 10 + number, datetime.now(UTC))
    text = await visitor.see("/usage?by=key&span=7d&tenant=acme")
    assert re.search(r'all others</th><td class="num">21<', text)
    assert ">k0</a>" not in text


@pytest.mark.parametrize(
    ("asked", "status", "said"),
    [
        ("by=key", 400, "Tenant: is needed"),
        ("by=key&tenant=acme&span=24h", 400, "Span: must be of days"),
        ("tenant=nobody", 404, "there is no tenant"),
        ("span=2999-01", 400, "or a month"),
    ],
)
async def test_what_cannot_be_summed_is_said(visitor, asked, status, said):
    """On the page with its form, and by the export."""
    assert said in html.unescape(await visitor.see(f"/usage?{asked}", status))
    assert (await visitor.get(f"/usage.csv?{asked}")).status_code == status


async def test_a_deleted_tenant_is_named_from_the_record(world, visitor, charge):
    """By its last name, without a link to the page that is gone; without a record by its id."""
    key = await world.tenant_with_key("lab")
    await charge(key, 5, datetime.now(UTC))
    await charge({"id": "key_old", "tenant_id": "ten_old"}, 4, datetime.now(UTC))
    await world.accounts.delete("lab")
    text = await visitor.see("/usage?by=tenant")
    assert "lab (deleted)</th>" in text
    assert "ten_old (deleted)</th>" in text
    for gone in (key["tenant_id"], "ten_old"):
        assert f"/tenants/{gone}" not in text
    assert "lab (deleted)" in (await visitor.get("/usage.csv?by=tenant")).text
