"""The ledger's pages: one call found by its id, lists by what they may be asked, exports."""

from __future__ import annotations

import csv
import html
import io
import json
import re
from datetime import UTC, datetime, timedelta

import pytest

from tests.dashboard.visitor import visiting

NOW = datetime.now(UTC)
ROW = """
INSERT INTO gateway.ledger (request_id, tenant_id, key_id, endpoint, model, status_code, outcome,
    basis, prompt_tokens, completion_tokens, charged_tokens, held_tokens, backend, started_at,
    ttft_ms, duration_ms, batch_id)
VALUES ($1, $2, $3, '/v1/chat/completions', $4, 200, $5, 'partial', 120, 34, 385, 1000,
    'gpu-1:11434', $6, 250, 1500, $7)
"""


@pytest.fixture
def book(world):
    """Write one row; all but its id and its age may be left out."""

    async def write(request_id, age=timedelta(0), **values):
        owner = values.get("key", world.key)
        await world.rows(
            ROW,
            request_id,
            owner["tenant_id"],
            owner["id"],
            values.get("model", "llama3.2:latest"),
            values.get("outcome", "completed"),
            NOW - age,
            values.get("batch"),
        )

    return write


def listed(text):
    return re.findall(r'href="/ledger/(req_\w+)"', text)


async def test_one_call_is_found_by_what_a_ticket_quotes(visitor, book):
    """The box leads to the call's page, which has every column in words."""
    await book("req_quoted", outcome="aborted", batch="batch_7")
    answer = await visitor.get("/ledger", params={"request_id": " req_quoted "})
    assert (answer.status_code, answer.headers["location"]) == (303, "/ledger/req_quoted")
    text = re.sub(r"<[^>]+>", "", html.unescape(await visitor.see("/ledger/req_quoted")))
    text = text.replace("\u202f", " ")
    for said in (
        "aborted: the client left",
        "partial: an estimate of the prompt",
        "120 tokens",
        "34 tokens",
        "385 tokens",
        "1 000 tokens; 615 were given back",
        "250 ms",
        "1.50 s",
        "gpu-1:11434",
        "batch_7",
        "/v1/chat/completions",
        "llama3.2:latest",
        "acme",
    ):
        assert said in text, said


@pytest.mark.parametrize("request_id", ["req_none", "%3Cimg%3E", "req_%00", "a%20b"])
async def test_a_call_that_is_not_booked_says_where_else_it_may_be(visitor, request_id):
    """It may go on, may have been refused, may be too old; what was asked is not echoed."""
    text = await visitor.see(f"/ledger/{request_id}", 404)
    for way in ('href="/calls"', 'href="/audit/refusals"', "RETENTION_DAYS"):
        assert way in text
    assert "<img>" not in text


async def test_calls_are_listed_by_what_is_asked(world, visitor, book):
    """Tenant, key, model, outcome and both times, alone and together, newest first."""
    other = await world.tenant_with_key("lab")
    day = timedelta(days=1)
    await book("req_1", 40 * day)
    await book("req_2", 3 * day, model="qwen3:8b")
    await book("req_3", 2 * day, key=other, outcome="timeout")
    await book("req_4", 1 * day, key=other)
    since, until = (f"{NOW - age:%Y-%m-%dT%H:%M:%S}" for age in (2.5 * day, 1.5 * day))
    for asked, found in (
        ({}, "4321"),
        ({"tenant": "acme"}, "21"),
        ({"tenant": other["tenant_id"], "outcome": "timeout"}, "3"),
        ({"key": other["id"]}, "43"),
        ({"key": other["public_id"], "outcome": "completed"}, "4"),
        ({"model": "qwen3:8b"}, "2"),
        ({"model": "llama3.2"}, "43"),  # a month of days, no more
        ({"outcome": "completed", "until": f"{NOW - 30 * day:%Y-%m-%dT%H:%M}"}, "1"),
        ({"since": since}, "43"),
        ({"since": since, "until": until}, "3"),
        ({"tenant": "acme", "since": since}, ""),
    ):
        answer = await visitor.get("/ledger", params=asked)
        assert answer.status_code == 200, answer.text
        assert "".join(row[-1] for row in listed(answer.text)) == found, asked
        rows = (await visitor.get("/ledger.jsonl", params=asked)).text.splitlines()
        assert "".join(json.loads(row)["request_id"][-1] for row in rows) == found, asked
    assert "No call is like that" in answer.text


@pytest.mark.parametrize(
    ("asked", "status", "said"),
    [
        ({"tenant": "nobody"}, 404, "there is no tenant"),
        ({"key": "nothing"}, 404, "there is no key"),
        ({"outcome": "bad"}, 400, "Outcome: must be one of"),
        ({"model": "b d"}, 400, "Model: "),
        ({"since": "yesterday"}, 400, "Since: must be a date and a time"),
        ({"since": "0001-01-01"}, 400, "Since: must be a date and a time"),
        ({"since": "2026-01-02", "until": "2026-01-02"}, 400, "Since: must be before"),
        ({"outcome": "lost", "since": "2020-01-01"}, 400, "at most 31 days"),
        ({"before": "1.x y"}, 400, "Before: "),
        ({"before": "9" * 17 + ".req_1"}, 200, ""),
    ],
)
async def test_a_fault_of_the_address_is_said_beside_the_form(visitor, asked, status, said):
    """What was asked stays in the form; an export of it is an error, too."""
    answer = await visitor.get("/ledger", params=asked)
    assert answer.status_code == status
    assert said in html.unescape(answer.text)
    assert 'action="/ledger"' in answer.text
    if "before" not in asked:
        assert (await visitor.get("/ledger.csv", params=asked)).status_code == status


async def test_pages_of_calls_go_on_to_the_end(visitor, book):
    """Each call once, over pages that keep what was asked."""
    for number in range(103):
        await book(f"req_{number:03}", timedelta(minutes=number // 4), outcome="cut")
    await book("req_other")
    where, found = "/ledger?outcome=cut", []
    while where:
        text = await visitor.see(where)
        found += listed(text)
        where = next(iter(re.findall(r'href="(/ledger\?[^"]*before=[^"]+)"', text)), "")
        where = html.unescape(where)
    assert sorted(found) == [f"req_{number:03}" for number in range(103)]
    assert "From the start" in text


async def test_calls_of_a_deleted_tenant_stay_without_a_link(world, visitor, book):
    """Its page is gone; the row is not."""
    key = await world.tenant_with_key("lab")
    await book("req_gone", key=key)
    await world.accounts.delete("lab")
    for path in ("/ledger", "/ledger/req_gone", f"/ledger?tenant={key['tenant_id']}"):
        text = await visitor.see(path)
        assert f"{key['tenant_id']}</span>" in text
        assert f"/tenants/{key['tenant_id']}" not in text
        assert f"/keys/{key['id']}" not in text


async def test_exports_hold_every_call_that_is_asked_for(visitor, book):
    """As CSV with a name of the days, and as JSON lines; a viewer may have them."""
    for number in range(60):
        await book(f"req_{number}", timedelta(hours=1), model="qwen3:8b" if number % 2 else "a:b")
    since = f"{NOW - timedelta(days=1):%Y-%m-%d}"
    answer = await visitor.get("/ledger.csv", params={"model": "qwen3:8b", "since": since})
    rows = list(csv.DictReader(io.StringIO(answer.text)))
    assert {row["model"] for row in rows} == {"qwen3:8b"}
    assert len(rows) == 30
    assert f'filename="ledger-{since}.csv"' in answer.headers["content-disposition"]


async def test_a_viewer_reads_the_ledger(admin, book):
    """Pages, one call and exports."""
    await book("req_1")
    async with visiting(admin, "viewer") as viewer:
        for path in ("/ledger", "/ledger/req_1", "/ledger.csv", "/ledger.jsonl"):
            assert "req_1" in await viewer.see(path)
