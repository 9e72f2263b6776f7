"""The record as the dashboard shows it: filtered, exported, and of what is gone."""

from __future__ import annotations

import csv
import html
import io
import json
import re

import pytest

from tests.dashboard.visitor import visiting


@pytest.fixture
async def acts(world):
    """Have two people change a few things."""
    for number in range(60):
        await world.rows(
            "INSERT INTO gateway.admin_events (actor, action, subject, after)"
            ' VALUES ($1, $2, $3, \'{"name": "some"}\')',
            "admin:eve" if number % 3 else "cli:bob",
            "key.update" if number % 2 else "tenant.update",
            f"id_{number}",
        )


def subjects(text):
    return [int(each) for each in re.findall(r'href="/audit\?subject=id_(\d+)"', text)]


async def test_changes_are_found_by_who_and_what(visitor, acts):
    """Alone and together, the latest first; the ways to ask are offered by what is on record."""
    text = await visitor.see("/audit")
    assert {"admin:eve", "cli:bob"} <= set(re.findall(r'<option value="([^"]+)"></option>', text))
    assert {"key.update", "tenant.update"} <= set(re.findall(r'<option value="([^"]+)">\w', text))
    bobs = [number for number in range(59, -1, -1) if number % 3 == 0]
    assert subjects(await visitor.see("/audit?actor=cli:bob")) == bobs
    odd = [number for number in bobs if number % 2]
    text = await visitor.see("/audit?actor=cli:bob&action=key.update")
    assert subjects(text) == odd
    assert 'value="cli:bob"' in text
    assert '<option value="key.update" selected>' in text
    assert subjects(await visitor.see("/audit?action=key.update&subject=id_9")) == [9]
    for nothing in ("actor=nobody", "action=key.revoke", "actor=cli:bob&subject=id_1"):
        assert "No change is like that" in await visitor.see(f"/audit?{nothing}")


async def test_pages_of_changes_keep_what_was_asked(visitor, world, acts):
    """To the end, and from the start again."""
    await world.rows("UPDATE gateway.admin_events SET actor = 'cli:bob' WHERE subject ~ '^id_'")
    first = await visitor.see("/audit?actor=cli%3Abob")
    (more,) = re.findall(r'href="(/audit\?[^"]*before=\d+)"', first)
    second = await visitor.see(html.unescape(more))
    assert subjects(first) + subjects(second) == list(range(59, -1, -1))
    assert 'href="/audit?actor=cli%3Abob">From the start' in second


async def test_exports_of_changes_are_what_is_asked_for(admin, acts):
    """Every one of them, with the rows before and after, for viewers as well."""
    async with visiting(admin, "viewer") as viewer:
        text = await viewer.see("/audit")
        ways = [html.unescape(each) for each in re.findall(r'href="(/audit\.\w+\?[^"]*)"', text)]
        assert ways == ["/audit.csv?", "/audit.jsonl?"]
        rows = list(csv.DictReader(io.StringIO(await viewer.see("/audit.csv?actor=cli:bob"))))
        assert [row["subject"] for row in rows] == [
            f"id_{n}" for n in range(59, -1, -1) if not n % 3
        ]
        assert json.loads(rows[0]["after"]) == {"name": "some"}
        lines = (await viewer.see("/audit.jsonl?action=key.update")).splitlines()
        assert {json.loads(line)["action"] for line in lines} == {"key.update"}
        assert len(lines) == 30


async def test_refusals_of_a_deleted_tenant_lead_nowhere(world, visitor):
    """Its page and those of its keys are gone, and so no link leads there."""
    for tenant, key in (("ten_old", "key_old"), (world.tenant["id"], world.key["id"])):
        await world.rows(
            "INSERT INTO gateway.audit_log (code, status_code, method, path, tenant_id, key_id,"
            " request_id) VALUES ('c', 401, 'GET', '/', $1, $2, 'r')",
            tenant,
            key,
        )
    text = await visitor.see("/audit/refusals")
    assert "ten_old</span>" in text
    assert "/tenants/ten_old" not in text
    assert "/keys/key_old" not in text
    assert f'href="/tenants/{world.tenant["id"]}"' in text
    assert f'href="/keys/{world.key["id"]}"' in text


async def test_notices_of_a_deleted_tenant_lead_nowhere(world, visitor):
    """They stay, as the ledger does, and are told by its id."""
    await world.rows(
        "INSERT INTO gateway.budget_notices (scope, tenant_id, period, period_start, threshold,"
        " budget, spent) VALUES ('t:ten_old', 'ten_old', 'month', current_date, 80, 5, 4)"
    )
    text = await visitor.see("/notices")
    assert "ten_old</span>" in text
    assert "/tenants/ten_old" not in text
