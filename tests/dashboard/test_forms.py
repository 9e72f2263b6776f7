"""Forms that change what is there: nothing is changed but what was touched, and nothing unseen."""

from __future__ import annotations

import html
import re
from datetime import UTC, datetime, timedelta

import pytest
import trio

from tests.dashboard.paper import form_of, form_to
from tests.dashboard.visitor import visiting, words

pytestmark = pytest.mark.usefixtures("same_day")
EXPIRY = datetime(2099, 5, 6, 7, 8, 37, 500_000, tzinfo=UTC)


async def row_of(world, table, name):
    (row,) = await world.rows(f"SELECT * FROM gateway.{table} WHERE name = $1", name)
    return row


@pytest.fixture
async def eve(admin):
    """Another admin, signed in, beside `visitor`."""
    token = (await admin.admins.create("eve", "admin"))["token"]
    async with visiting(admin, None) as signed_in:
        assert (await signed_in.sign_in(token)).status_code == 303
        yield signed_in


def edited(world):
    """Return the address of each form, and where its row is."""
    return {
        "tenants": (f"/tenants/{world.tenant['id']}/edit", "acme"),
        "api_keys": (f"/keys/{world.key['id']}/edit", world.key["name"]),
        "models": ("/models/edit?name=qwen3:8b", "qwen3:8b"),
    }


@pytest.mark.parametrize(
    ("table", "theirs", "mine"),
    [
        ("tenants", {"requests_per_minute": "60"}, {"budget": "900"}),
        ("tenants", {"grant": "these", "more_models": "qwen3:8b"}, {"weight_share": "7"}),
        ("api_keys", {"requests_per_minute": "60"}, {"budget": "900"}),
        ("api_keys", {"expires_at": "2099-01-01T00:00"}, {"name": "renamed"}),
        ("models", {"blocked": "yes"}, {"weight": "2.5"}),
    ],
)
async def test_a_later_save_undoes_nothing(world, visitor, eve, table, theirs, mine):
    """Of two forms that were open at once each changes what its admin touched, and no more."""
    path, name = edited(world)[table]
    first, second = form_of(await eve.see(path)), form_of(await visitor.see(path))
    await eve.done(path, first | theirs)
    before = dict(await row_of(world, table, name))
    await visitor.done(path, second | mine)
    after = dict(await row_of(world, table, mine.get("name", name)))
    changed = {column for column in before if before[column] != after[column]} - {"updated_at"}
    column = {"weight": "milli_weight"}.get(*mine, *mine)
    assert changed == {column}


@pytest.mark.parametrize(
    ("table", "theirs", "mine", "now"),
    [
        ("tenants", {"budget": "500"}, {"budget": "900"}, "500"),
        ("tenants", {"budget_period": "day"}, {"budget": "900"}, "day"),
        ("tenants", {"grant": "these"}, {"grant": "these", "more_models": "qwen3:8b"}, "no"),
        ("api_keys", {"requests_per_minute": "60"}, {"requests_per_minute": "50"}, "60"),
        ("models", {"weight": "3"}, {"weight": "2.5"}, "3"),
    ],
)
async def test_two_who_change_the_same_are_told(world, visitor, eve, table, theirs, mine, now):
    """The later is a 409 that says who was first and keeps the input; saved again, it is done."""
    if table == "tenants":
        await world.accounts.update("acme", {"all_models": True, "models": []})
    path, name = edited(world)[table]
    first, second = form_of(await eve.see(path)), form_of(await visitor.see(path))
    other = {"models": {"num_ctx": "512"}}.get(table, {"max_output_tokens": "77"})
    await eve.done(path, first | theirs | other)
    before = dict(await row_of(world, table, name))
    answer = await visitor.do(path, second | mine)
    assert answer.status_code == 409
    told = words(answer.text)
    assert re.search(rf"changed meanwhile by admin:eve at \d\d:\d\d UTC: it is {now} now,", told), (
        told
    )
    assert dict(await row_of(world, table, name)) == before
    again = form_of(answer.text)
    assert {field: again[field][-1] for field in mine if field != "more_models"} == {
        field: value for field, value in mine.items() if field != "more_models"
    }
    await visitor.done(path, again)
    after = dict(await row_of(world, table, name))
    for field in other:
        assert after[field] == before[field]  # which the later form had never seen
    assert after != before


@pytest.mark.parametrize(
    ("table", "field"),
    [("tenants", "weight_share"), ("api_keys", "max_output_tokens"), ("models", "num_ctx")],
)
async def test_of_two_at_once_one_is_told(world, visitor, eve, table, field):
    """Whoever comes second finds what the first has written, also where there was no row."""
    path, _ = edited(world)[table]
    forms = {each: form_of(await each.see(path)) for each in (visitor, eve)}
    statuses = []

    async def save(each, value):
        statuses.append((await each.do(path, forms[each] | {field: value})).status_code)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(save, visitor, "40")
        nursery.start_soon(save, eve, "50")
    assert sorted(statuses) == [303, 409]


async def test_the_same_change_twice_is_no_conflict(world, visitor, eve):
    """Two who want the same have it."""
    path, name = edited(world)["tenants"]
    first, second = form_of(await eve.see(path)), form_of(await visitor.see(path))
    await eve.done(path, first | {"budget": "500"})
    await visitor.done(path, second | {"budget": "500", "weight_share": "3"})
    row = await row_of(world, "tenants", name)
    assert (row["budget"], row["weight_share"]) == (500, 3)


@pytest.mark.parametrize("table", ["tenants", "api_keys", "models"])
async def test_a_form_that_nobody_touched_changes_nothing(world, visitor, table):
    """It is no change on record either, and an expiry keeps its seconds."""
    await world.keyring.update(world.key["id"], {"expires_at": EXPIRY, "budget": 5})
    path, name = edited(world)[table]
    await world.models.set("qwen3:8b", {"num_ctx": 512, "digest": "ab" * 32}, "model.pin")
    before = dict(await row_of(world, table, name))
    acts = await world.rows("SELECT id FROM gateway.admin_events")
    await visitor.done(path, form_of(await visitor.see(path)))
    assert "Nothing was changed" in await visitor.see("/tenants")
    assert dict(await row_of(world, table, name)) == before
    assert await world.rows("SELECT id FROM gateway.admin_events") == acts


async def test_another_change_leaves_an_expiry_alone(world, visitor):
    """To the microsecond, though its field shows minutes; touched, it is what was written."""
    await world.keyring.update(world.key["id"], {"expires_at": EXPIRY})
    path, name = edited(world)["api_keys"]
    await visitor.done(path, form_of(await visitor.see(path)) | {"budget": "5"})
    assert (await row_of(world, "api_keys", name))["expires_at"] == EXPIRY
    form = form_of(await visitor.see(path))
    await visitor.done(path, form | {"expires_at": "2099-05-06T07:09"})
    row = await row_of(world, "api_keys", name)
    assert row["expires_at"] == datetime(2099, 5, 6, 7, 9, tzinfo=UTC)
    await visitor.done(path, form_of(await visitor.see(path)) | {"expires_at": ""})
    assert (await row_of(world, "api_keys", name))["expires_at"] is None


@pytest.mark.parametrize("opened", [None, "", "nothing", "[]", "{}", '{"expires_at": "soon"}'])
@pytest.mark.parametrize("table", ["tenants", "api_keys", "models"])
async def test_a_form_that_does_not_say_what_it_showed_is_refused(world, visitor, table, opened):
    """Whoever sends one by hand is told, and nothing is changed."""
    path, name = edited(world)[table]
    form = form_of(await visitor.see(path)) | {"budget": "5", "num_ctx": "5"}
    form.pop("opened")
    answer = await visitor.do(path, form if opened is None else form | {"opened": opened})
    assert answer.status_code == 400
    assert "Load the page again" in answer.text
    rows = await world.rows(f"SELECT * FROM gateway.{table} WHERE name = $1", name)
    assert [row for row in rows if 5 in tuple(row.values())] == []


@pytest.mark.parametrize(
    ("written", "value"),
    [
        ("1500", 1500),
        ("1 500", 1500),
        ("1,500", 1500),
        ("12_000_000", 12_000_000),
        ("1'500", 1500),
        ("1\u202f500", 1500),
        (" 7 ", 7),
        ("1,5", None),
        ("1 5", None),
        ("1,,,5", None),
        ("1,500 000", None),
        ("1500,000", None),
        (",500", None),
        ("1.500", None),
        ("\u0661", None),
    ],
)
async def test_separators_stand_between_thousands_alone(world, visitor, written, value):
    """A decimal comma is refused at its field, not read as a number ten times as large."""
    path, name = edited(world)["tenants"]
    answer = await visitor.do(path, form_of(await visitor.see(path)) | {"budget": written})
    assert answer.status_code == (400 if value is None else 303)
    assert (await row_of(world, "tenants", name))["budget"] == value
    if value is None:
        assert "Budget: must be a whole number" in words(answer.text)
        assert form_of(answer.text)["budget"] == [written]


async def test_every_fault_of_a_form_is_shown_at_once(visitor):
    """Each beside its field, and all of them above."""
    form = {"name": "lab", "grant": "all", "budget_period": "month", "models": "qwen3:8b"}
    answer = await visitor.do("/tenants/new", form | {"budget": "1,5", "weight_share": "0"})
    assert answer.status_code == 400
    told = words(answer.text)
    for field in ("Budget: must", "Weight share: must", "Models: are ticked"):
        assert field in told, told
    assert answer.text.count('aria-invalid="true"') == 2
    assert answer.text.count('class="wrong"') == 3


@pytest.mark.parametrize("whose", ["tenants", "keys"])
async def test_a_question_with_a_fault_is_asked_again(world, visitor, whose):
    """The page comes back with the question open, the fault at its field, and the input kept."""
    await world.accounts.update("acme", {"budget": 1000})
    await world.keyring.update(world.key["id"], {"budget": 1000})
    where = f"/{whose}/{(world.tenant if whose == 'tenants' else world.key)['id']}"
    await visitor.see(where)
    past = {"tokens": "500", "until": "2020-01-01T00:00"}
    answer = await visitor.do(f"{where}/extend", past)
    assert answer.status_code == 400
    assert "Until: must be in the future" in words(answer.text)
    form = form_to(answer.text, f"{where}/extend")
    assert {name: [value] for name, value in past.items()}.items() <= form.items()
    (opened,) = re.findall(r'<details class="confirm" open data-address="([^"]+)">', answer.text)
    assert opened == where
    answer = await visitor.do(f"{where}/extend", {"tokens": "1,5", "until": ""})
    assert answer.text.count('class="wrong"') == 2
    tomorrow = (datetime.now(UTC) + timedelta(days=1)).strftime("%Y-%m-%dT%H:%M")
    await visitor.done(f"{where}/extend", past | {"until": tomorrow})


async def test_rotate_and_revoke_are_asked_again(world, visitor):
    """A choice that is none, and a reason that is too long, are said where they were made."""
    where = f"/keys/{world.key['id']}"
    answer = await visitor.do(f"{where}/rotate", {"overlap": "1y"})
    assert answer.status_code == 400
    assert "Overlap: must be one of" in words(answer.text)
    reason = "lost " * 50
    answer = await visitor.do(f"{where}/revoke", {"reason": reason})
    assert answer.status_code == 400
    assert "Reason: must be at most 200 characters" in words(answer.text)
    assert form_to(answer.text, f"{where}/revoke")["reason"] == [reason]
    assert await world.rows("SELECT 1 FROM gateway.revocations") == []


async def test_an_act_that_cannot_be_is_said_on_its_page(world, visitor, made):
    """A tenant that still has files stays, and its page says why; what is gone is a 404."""
    where = f"/tenants/{made['tenant']}"
    await visitor.see(where)
    answer = await visitor.do(f"{where}/delete")
    assert answer.status_code == 409
    assert "still has files" in answer.text
    assert 'href="' + where + '/edit"' in answer.text
    assert (await visitor.do("/tenants/ten_none/extend", {"tokens": "1"})).status_code == 404
    await world.keyring.revoke(world.key["id"])
    answer = await visitor.do(f"/keys/{world.key['id']}/rotate", {"overlap": "1h"})
    assert answer.status_code == 409
    assert "the key is revoked" in html.unescape(answer.text)


@pytest.mark.parametrize("path", ["/batches", "/files", "/calls"])
async def test_a_list_of_a_tenant_that_is_not_there_asks_for_another(visitor, path):
    """The message stands at the field with the name as it was written, beside the other filters."""
    text = await visitor.see(f"{path}?tenant=team-49&status=failed&after=7", 404)
    assert "there is no tenant 'team-49'" in html.unescape(text).lower()
    form = form_of(text)
    assert form == {"tenant": ["team-49"], "status": ["failed"]}
    assert 'aria-invalid="true"' in text
    assert f'action="{path}"' in text
    assert "Look again" not in await visitor.see("/tenants/ten_none?tenant=acme", 404)


async def test_a_filter_by_a_tenant_that_is_not_there_can_be_mended(visitor):
    """The page comes back with its form, what was written, and what is wrong with it."""
    answer = await visitor.get("/usage?tenant=team-49")
    assert answer.status_code in {400, 404}
    assert "there is no tenant 'team-49'" in html.unescape(answer.text).lower()
    assert form_of(answer.text, "filter")["tenant"] == ["team-49"]
