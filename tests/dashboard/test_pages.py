"""What pages say: of names that are markup, of stores that are away, of forms with faults."""

from __future__ import annotations

import codecs
import html
import json
import re
from datetime import UTC, datetime, timedelta

import pytest
import trio

from tests.dashboard.paper import form_of
from tests.dashboard.test_doors import EXPORTS, SPECIAL, addresses
from tests.dashboard.visitor import visiting, words
from tests.integration.admin_world import open_admin
from tests.proxy import open_door
from trio_gateway.core.officers import Officer, Role, sha256_hex
from trio_gateway.services.sessions import Session
from trio_gateway.web.admin.dashboard import charts, desk, together
from trio_gateway.web.admin.dashboard import proven as remembered
from trio_gateway.web.admin.dashboard import words as spoken

SECONDS = 4.8  # for a page whose store hangs, which itself gives up after five or ten
MARKUP = "<script>alert(1)</script>\"'><img src=x onerror=alert(1)>"
pytestmark = pytest.mark.usefixtures("same_day")


async def test_markup_in_every_name_is_text(world, admin, visitor):
    """Whatever callers and operators may name is shown as they wrote it, and never run."""
    key = await world.keyring.issue("acme", {"name": MARKUP})
    await world.keyring.update(key["id"], {"budget": 5})
    other = await world.keyring.issue("acme", {"name": "other"})
    await world.keyring.revoke(other["id"], reason=MARKUP)
    body = {"custom_id": MARKUP, "method": "POST", "url": MARKUP, "body": {}}
    upload = {"file": (MARKUP.replace("/", "") + ".jsonl", json.dumps(body).encode() + b"\n")}
    file = await world.client.post(
        "/v1/files", files=upload, data={"purpose": "batch"}, headers=world.auth(key)
    )
    assert file.status_code == 200, file.text
    wanted = {"input_file_id": file.json()["id"], "endpoint": "/v1/embeddings"}
    more = {"completion_window": "24h", "metadata": {MARKUP[:40]: MARKUP}}
    batch = (await world.post("/v1/batches", wanted | more, key)).json()
    await world.client.get("/%3Cimg%20src=x%20onerror=alert(1)%3E")
    with trio.fail_after(20):  # refusals are written by and by
        while not await world.rows("SELECT 1 FROM gateway.audit_log"):  # noqa: ASYNC110
            await trio.sleep(0.02)
    await world.rows(
        "INSERT INTO gateway.webhooks (id, name, url, secret) VALUES ('wh_some', 'some', $1, 'x')",
        f"https://hooks.example.com/?{MARKUP}",
    )
    await world.rows(
        "INSERT INTO gateway.models (name, digest) VALUES ($1, $1) ON CONFLICT DO NOTHING", MARKUP
    )
    await world.rows("UPDATE gateway.admin_sessions SET name = $1, client = $1", MARKUP)
    await world.rows(
        "INSERT INTO gateway.budget_notices (scope, tenant_id, key_id, period, period_start,"
        " threshold, budget, spent) VALUES ($1, $2, $3, 'month', $4, 80, 5, 4)",
        f"k:{key['id']}",
        key["tenant_id"],
        key["id"],
        datetime.now(UTC).date().replace(day=1),
    )
    made = {"tenant": key["tenant_id"], "key": key["id"], "batch": batch["id"]}
    made |= {"file": file.json()["id"], "webhook": "wh_some", "request": "req_none"}
    shown_on = set()
    for endpoint, path in addresses(admin, "GET", made).items():
        if endpoint in SPECIAL | EXPORTS:
            continue
        text = (await visitor.get(path, follow_redirects=True)).text
        assert "<img src=x" not in text, path
        assert "<script>alert" not in text, path
        if "&lt;img src=x" in text or html.escape(MARKUP)[:20] in text:
            shown_on.add(endpoint.split(".")[1] + "." + endpoint.split(".")[2])
    wanted_on = {
        "tenants.show",
        "keys.show",
        "key_list.listing",
        "keys.edit",
        "models.listing",
        "batches.files",
    }
    wanted_on |= {"batches.show", "audit.acts", "notices.listing", "notices.show"}
    wanted_on |= {"admins.listing", "overview.overview", "audit.refusals", "notices.webhooks"}
    assert wanted_on <= shown_on, wanted_on - shown_on


async def test_a_search_is_shown_as_text_too(visitor):
    """What the address asks for comes back in the form's own field alone."""
    names = ("match", "tenant", "subject", "find", "key", "model", "actor", "action")
    pages = ("/tenants", "/audit", "/files", "/audit/refusals", "/keys", "/ledger", "/usage")
    for path in pages:
        text = await visitor.get(path, params=dict.fromkeys(names, MARKUP))
        assert "<img" not in text.text.replace('<img src="/static', "")


@pytest.mark.parametrize(
    ("away", "named"), [("redis_url", "Redis"), ("database_url", "PostgreSQL")]
)
async def test_a_store_that_is_away_is_named(world, away, named):
    """The page is a 503 that says which, in its shell; it is whole again when the store is back."""
    url = getattr(world.gateway.settings, away)
    async with (
        open_door(url) as door,
        open_admin(world, **{away: door.url}) as admin,
        visiting(admin) as visitor,
    ):
        await visitor.see("/")
        door.shut()
        answer = await visitor.get("/")
        assert answer.status_code == 503
        assert int(answer.headers["retry-after"]) >= 1
        assert f"{named} cannot be reached" in answer.text
        assert 'href="/tenants"' in answer.text
        if named == "Redis":
            assert "Tokens by model" in answer.text  # what is there is shown
            assert (await visitor.get("/tenants")).status_code == 200
            assert (await visitor.get("/health")).status_code == 503
            assert (await visitor.get("/calls")).status_code == 503
        door.reopen()
        with trio.fail_after(30):
            while (await visitor.get("/")).status_code != 200:  # noqa: ASYNC110
                await trio.sleep(0.1)


async def test_a_database_that_hangs_is_named_within_seconds(world, monkeypatch):
    """Pages give up on it; health says that it is away, to whoever was proven of late alone."""
    assert desk.PATIENCE + together.PATIENCE <= 7
    url = world.gateway.settings.database_url
    async with (
        open_door(url) as door,
        open_admin(world, database_url=door.url) as admin,
        visiting(admin) as visitor,
        visiting(admin, None) as nobody,
    ):
        await visitor.see("/health")
        monkeypatch.setattr(desk, "PATIENCE", 0.8)
        monkeypatch.setattr(together, "PATIENCE", 0.8)
        door.swallow()
        for path in ("/", "/no/such/page"):
            with trio.fail_after(SECONDS):
                answer = await visitor.get(path)
            assert answer.status_code == (503 if path == "/" else 404)
        with trio.fail_after(SECONDS):
            health = await visitor.get("/health")
        assert health.status_code == 503
        assert re.search(r"PostgreSQL</dt>\s*<dd>away</dd>", health.text)
        assert "Sign out" in health.text
        assert (await nobody.get("/health")).status_code == 303
        nobody.cookies.set("tg-session", "of-nobody")
        answer = await nobody.get("/health")
        assert answer.status_code == 503
        assert "PostgreSQL cannot be reached" in answer.text
        assert "Sign out" not in answer.text
        # A change may have been the end of the session, so it ends what is remembered.
        assert (await visitor.do("/logout")).status_code == 503
        assert "Sign out" not in (await visitor.get("/health")).text
        door.reopen()
        door.cut()
        with trio.fail_after(30):
            while (await visitor.get("/")).status_code != 200:  # noqa: ASYNC110
                await trio.sleep(0.1)


async def test_a_session_that_is_over_is_not_remembered(world):
    """Signing out ends it for the health page too; so does anybody's end of a session."""
    url = world.gateway.settings.database_url
    async with (
        open_door(url) as door,
        open_admin(world, database_url=door.url) as admin,
        visiting(admin) as visitor,
    ):
        kept = {"cookie": f"tg-session={visitor.cookies['tg-session']}"}
        await visitor.see("/health")
        await visitor.done("/logout")
        door.shut()
        answer = await visitor.get("/health", headers=kept)
        assert "Sign out" not in answer.text


def test_few_sessions_are_remembered_and_not_for_long(monkeypatch):
    """The memory has a bound, and each session in it a minute."""
    now = 100.0
    monkeypatch.setattr(trio, "current_time", lambda: now)
    memory = remembered.Proven()
    for number in range(remembered.MOST + 5):
        officer = Officer("eve", Role.VIEWER, "settings:viewer")
        memory.note(Session(officer, "csrf", sha256_hex(str(number))))
    assert len(memory) == remembered.MOST
    assert memory.find("4") is None
    assert memory.find("5") is not None
    now += remembered.LIFE
    assert memory.find("5") is None


async def test_tiles_charts_and_outcomes_add_up(world, visitor):
    """They are read of one snapshot: the same tokens and requests in each."""
    body = {"model": "llama3.2", "messages": [{"role": "user", "content": "hello"}]}
    for _ in range(3):
        assert (await world.post("/v1/chat/completions", body)).status_code == 200
    await world.settled()
    text = await visitor.see("/")
    assert re.search(r"Requests</dt>\s*<dd>3</dd>", text)
    (tokens,) = re.findall(r"Tokens charged</dt>\s*<dd>(\d+)</dd>", text)
    assert re.findall(r"(\d+) tokens in all", text) == [tokens, tokens]
    assert re.search(r'completed</th><td class="num">3</td>', text)
    live = set(re.findall(r'data-live="([^"]+)"', text))
    assert live == {"calls", "waiting", "workers"}


async def test_a_missing_page_knows_who_is_signed_in(admin, visitor):
    """The shell stays around it, and shows nothing of a session to others."""
    assert "Sign out" in await visitor.see("/no/such/page", 404)
    assert "Sign out" not in (await admin.client.get("/no/such/page")).text


FAULTS = (
    ({"requests_per_minute": "many"}, "requests_per_minute"),
    ({"tokens_per_minute": "-1"}, "tokens_per_minute"),
    ({"budget": "9" * 25}, "budget"),
    ({"budget_period": "week"}, "budget_period"),
    ({"max_output_tokens": "0"}, "max_output_tokens"),
    ({"more_models": "bad name"}, "models"),
    ({"grant": "all", "models": "qwen3:8b"}, "models"),
    ({"grant": "all", "more_models": "qwen3:8b"}, "models"),
    ({"grant": ""}, "grant"),
    ({"weight_share": "0"}, "weight_share"),
    ({"weight_share": ""}, "weight_share"),
    ({"name": "-bad-"}, "name"),
    ({"name": "acme"}, "name"),
)


async def test_a_fault_names_its_field_and_changes_nothing(world, visitor):
    """The form comes back with the fault beside the field, and with what was written."""
    right = {"name": "lab", "grant": "these", "budget_period": "month", "weight_share": "1"}
    right |= {"budget": "1 000"}
    for wrong, field in FAULTS:
        answer = await visitor.do("/tenants/new", right | wrong)
        assert answer.status_code == 400, wrong
        assert "Nothing was changed." in answer.text
        label = field.replace("_", " ").capitalize()
        assert f"{label}: " in words(answer.text).replace("&#39;", "'"), (wrong, words(answer.text))
        if "budget" not in wrong:
            assert 'value="1 000"' in answer.text
    assert await world.rows("SELECT 1 FROM gateway.tenants WHERE name <> 'acme'") == []
    assert (await visitor.done("/tenants/new", right)).startswith("/tenants/ten_")
    (row,) = await world.rows("SELECT * FROM gateway.tenants WHERE name = 'lab'")
    assert (row["budget"], row["all_models"], row["models"]) == (1000, False, [])


async def test_what_a_key_may_not_is_said_in_its_form(world, visitor):
    """A key that would get more than its tenant has is refused, with the reason."""
    await world.accounts.update("acme", {"requests_per_minute": 5})
    path = f"/tenants/{world.tenant['id']}/keys/new"
    form = {"name": "greedy", "budget_period": "month", "grant": "all"}
    form |= {"requests_per_minute": "6"}
    answer = await visitor.do(path, form)
    assert answer.status_code == 400
    assert "6 is more than tenant acme" in html.unescape(answer.text)
    answer = await visitor.do(path, form | {"expires_at": "tomorrow"})
    assert "must be a date and a time" in answer.text


@pytest.mark.parametrize("listed", ["models", "more_models"])
@pytest.mark.parametrize("grant", [{}, {"grant": "all"}, {"grant": "some"}])
async def test_models_without_the_choice_make_no_key(world, visitor, listed, grant):
    """Models ticked or listed beside another choice are refused, for a new key and an old one."""
    form = {"name": "narrow", "budget_period": "month", listed: "qwen3:8b"} | grant
    before = await world.rows("SELECT id, models FROM gateway.api_keys")
    for path in (f"/tenants/{world.tenant['id']}/keys/new", f"/keys/{world.key['id']}/edit"):
        opened = form_of(await visitor.see(path)).get("opened", "")
        answer = await visitor.do(path, form | {"opened": opened})
        assert answer.status_code == 400
        named = "Models: " if grant == {"grant": "all"} else "Grant: "
        assert named in words(answer.text)
        assert "qwen3:8b" in answer.text
    assert await world.rows("SELECT id, models FROM gateway.api_keys") == before


async def test_keys_are_shown_once_and_work_as_told(world, visitor):
    """A key is on the page that answers its making, on no other; rotation and budgets work."""
    path = f"/tenants/{world.tenant['id']}/keys/new"
    form = {"name": "laptop", "budget_period": "day", "grant": "these", "models": "qwen3:8b"}
    answer = await visitor.do(path, form | {"expires_at": "2099-01-01T00:00", "budget": "50"})
    (key,) = re.findall(r"sk-tg-[A-Za-z0-9-]+", answer.text)
    assert "Key laptop of tenant acme." in answer.text
    assert "Shown this once: keep it now." in answer.text
    (row,) = await world.rows("SELECT * FROM gateway.api_keys WHERE name = 'laptop'")
    assert (row["models"], row["budget"]) == (["qwen3:8b"], 50)
    assert row["expires_at"] == datetime(2099, 1, 1, tzinfo=UTC)
    where = f"/keys/{row['id']}"
    for page in (where, f"/tenants/{row['tenant_id']}", "/audit", f"{where}/edit"):
        assert key not in await visitor.see(page)
    tomorrow = (datetime.now(UTC) + timedelta(days=1)).strftime("%Y-%m-%dT%H:%M")
    assert await visitor.done(f"{where}/extend", {"tokens": "25", "until": tomorrow}) == where
    assert "of 75" in html.unescape(await visitor.see(where))
    assert (await visitor.do(f"{where}/extend", {"tokens": "25"})).status_code == 400
    await visitor.done(f"{where}/end-extension")
    answer = await visitor.do(f"{where}/rotate", {"overlap": "1h"})
    (fresh,) = re.findall(r"sk-tg-[A-Za-z0-9-]+", answer.text)
    assert fresh != key
    assert (await visitor.do(f"{where}/rotate", {"overlap": "1y"})).status_code == 400
    models = [await world.get("/v1/models", {"key": each}) for each in (key, fresh)]
    assert [each.status_code for each in models] == [200, 200]
    await visitor.done(f"{where}/disable")
    assert "disabled" in await visitor.see(where)
    await visitor.done(f"{where}/enable")
    await visitor.done(f"{where}/revoke", {"reason": "laptop lost"})
    text = await visitor.see(where)
    assert "/revoke" not in text
    assert re.search(r"Revoked</dt><dd><time[^>]+>[^<]+</time>: laptop lost</dd>", text)


async def changed(visitor, path, form):
    """Change these fields of a form as it is shown."""
    await visitor.done(path, form_of(await visitor.see(path)) | form)


async def test_models_tenants_admins_and_webhooks_are_changed(world, admin, visitor):
    """Each kind of change by its form; what was done is said on the next page, once."""
    assert await visitor.done("/models/block", {"name": "qwen3:8b"}) == "/models"
    assert "The model is changed." in await visitor.see("/models")
    assert "The model is changed." not in await visitor.see("/models")
    policy = {"name": "qwen3:8b", "weight": "2.5", "num_ctx": "4096", "digest": "ab" * 32}
    await changed(visitor, "/models/edit?name=qwen3:8b", policy | {"blocked": []})
    (row,) = await world.rows("SELECT * FROM gateway.models")
    assert (row["blocked"], row["milli_weight"], row["num_ctx"]) == (False, 2500, 4096)
    for wrong in ({"weight": "2000"}, {"num_ctx": "0"}, {"digest": "xyz"}, {"name": "b d"}):
        assert (await visitor.do("/models/edit", policy | wrong)).status_code == 400
    answer = await visitor.do("/admins", {"name": "eve", "role": "viewer"})
    assert "tga-" in answer.text
    assert (await visitor.do("/admins", {"name": "eve", "role": "viewer"})).status_code == 400
    (eve,) = await world.rows("SELECT id FROM gateway.admins WHERE name = 'eve'")
    await visitor.done(f"/admins/{eve['id']}/assign", {"role": "metrics"})
    for act in ("disable", "enable", "delete"):
        await visitor.done(f"/admins/{eve['id']}/{act}")
    assert (await visitor.do(f"/admins/{eve['id']}/enable")).status_code == 404
    answer = await visitor.do("/webhooks", {"name": "chat", "url": "https://no.example/"})
    assert answer.status_code == 400
    tenant = world.tenant["id"]
    form = {"budget_period": "day", "weight_share": "9", "grant": "these"}
    await changed(visitor, f"/tenants/{tenant}/edit", form)
    await visitor.done(f"/tenants/{tenant}/disable")
    await visitor.done(f"/tenants/{tenant}/enable")
    assert await visitor.done(f"/tenants/{tenant}/delete") == "/tenants"
    assert "The tenant is deleted." in await visitor.see("/tenants")
    acts = {row["action"] for row in await world.rows("SELECT action FROM gateway.admin_events")}
    assert {"model.block", "model.update", "admin.assign", "tenant.delete"} <= acts
    for row in await world.rows("SELECT actor FROM gateway.admin_events WHERE action ~ '^model'"):
        assert row["actor"] == "admin:admin"


async def test_the_record_is_read_by_people(world, visitor):
    """Names stand beside ids, also of what is gone; weights, yes and no, and instants are told."""
    policy = {"weight": "2.5", "blocked": "yes"}
    await changed(visitor, "/models/edit?name=qwen3:8b", policy)
    key = await world.keyring.issue("acme", {"name": "laptop"})
    await world.keyring.update(key["id"], {"expires_at": datetime(2099, 1, 1, tzinfo=UTC)})
    gone = await world.accounts.create("lab", {})
    await world.accounts.delete("lab")
    text = await visitor.see("/audit")
    assert re.search(r"<dt>weight</dt><dd>(<del>1</del> → )?<ins>2.5</ins>", text)
    assert re.search(r"<dt>blocked</dt><dd>(<del>no</del> → )?<ins>yes</ins>", text)
    wanted = '<ins><time datetime="2099-01-01T00:00:00Z"'
    assert f"<dt>expires at</dt><dd><del>none</del> → {wanted}" in text
    for name, row in (("laptop", key), ("lab", gone)):
        assert re.search(rf'>{name}<br><span class="mono[^>]+>{row["id"]}</span>', text)
    assert f'laptop <span class="mono">{key["id"]}' in await visitor.see(
        f"/audit?subject={key['id']}"
    )


async def test_a_batch_names_its_key_and_leads_to_its_files(world, visitor, made):
    """Ids of files lead to the list in which they stand."""
    await world.keyring.update(made["key"], {"name": "nightly"})
    text = await visitor.see(f"/batches/{made['batch']}")
    assert f'<a href="/keys/{made["key"]}">nightly</a>' in text
    (where,) = re.findall(rf'href="(/files\?[^"]+#{made["file"]})"', text)
    assert f'<tr id="{made["file"]}">' in await visitor.see(html.unescape(where))


async def test_sessions_end_when_they_have_rested(world, visitor):
    """What is told of a session is the nearer of its end and the idle limit."""
    text = await visitor.see("/admins")
    (row,) = await world.rows("SELECT seen_at, expires_at FROM gateway.admin_sessions")
    assert f'<time datetime="{spoken.iso(row["seen_at"] + timedelta(minutes=30))}"' in text
    assert f'<time datetime="{spoken.iso(row["expires_at"])}"' not in text
    await world.rows("UPDATE gateway.admin_sessions SET expires_at = now() + interval '9 minutes'")
    text = await visitor.see("/admins")
    (row,) = await world.rows("SELECT expires_at FROM gateway.admin_sessions")
    assert f'<time datetime="{spoken.iso(row["expires_at"])}"' in text


async def test_backticks_of_the_description_are_code(visitor):
    """The API's page shows no mark-up of another kind."""
    text = re.sub(r"<[^>]+>", "", await visitor.see("/docs"))
    assert "`" not in text


async def test_an_admin_ends_a_session_of_somebody_else(world, admin, visitor):
    """It is on record, and the other one has to sign in again."""
    async with visiting(admin, "viewer") as other:
        (row,) = await world.rows("SELECT id FROM gateway.admin_sessions WHERE role = 'viewer'")
        assert await visitor.done("/sessions/end", {"session": row["id"]}) == "/admins"
        assert (await other.get("/")).status_code == 303
    (act,) = await world.rows("SELECT * FROM gateway.admin_events WHERE action = 'session.end'")
    assert (act["actor"], act["subject"]) == ("admin:admin", "some-viewer")
    assert (await visitor.do("/sessions/end", {"session": row["id"]})).status_code == 404


async def test_exports_run_nothing_in_a_spreadsheet(world, visitor):
    """A name that begins as a formula does comes out with a quote before it."""
    key = await world.keyring.issue("acme", {"name": "=HYPERLINK(1)"})
    body = {"model": "llama3.2", "messages": [{"role": "user", "content": "hello"}]}
    assert (await world.post("/v1/chat/completions", body, key)).status_code == 200
    await world.settled()
    answer = await visitor.get("/ledger.csv?tenant=acme")
    assert answer.headers["content-disposition"].startswith("attachment")
    assert ",'=HYPERLINK(1)," in answer.text
    sums = (await visitor.get("/usage.csv?span=7d&by=tenant")).text.splitlines()
    assert len(sums) == 2
    assert "acme" in sums[1]
    assert (await visitor.get("/ledger.csv?tenant=nobody")).status_code == 404


async def test_spreadsheets_are_told_that_an_export_is_utf8(world, admin, visitor):
    """CSV of the dashboard begins with UTF-8's mark, once; the API's, and JSON lines, do not."""
    key = await world.keyring.issue("acme", {"name": "日本"})
    body = {"model": "llama3.2", "messages": [{"role": "user", "content": "hello"}]}
    assert (await world.post("/v1/chat/completions", body, key)).status_code == 200
    await world.settled()
    for path in ("/ledger.csv", "/audit.csv", "/usage.csv?by=tenant"):
        content = (await visitor.get(path)).content
        assert (content[:3], content.count(codecs.BOM_UTF8)) == (codecs.BOM_UTF8, 1), path
    assert "日本" in (await visitor.get("/ledger.csv")).content.decode("utf-8-sig")
    plain = [(await visitor.get("/ledger.jsonl")).content]
    for path in ("/ledger?format=csv", "/ledger?format=jsonl"):
        plain.append((await admin.ask("GET", path)).content)
    for content in plain:
        assert "日本".encode() in content
        assert codecs.BOM_UTF8 not in content


async def test_webhooks_are_made_and_tested(world):
    """The secret is shown once; a test message is queued; the viewer sees no secret."""
    async with (
        open_admin(world, webhook_hosts="hooks.example.com") as admin,
        visiting(admin) as visitor,
    ):
        form = {"name": "chat", "url": "https://hooks.example.com/x", "tenant": "acme"}
        answer = await visitor.do("/webhooks", form)
        (secret,) = re.findall(r"whsec_[A-Za-z0-9+/=]+", html.unescape(answer.text))
        (row,) = await world.rows("SELECT id FROM gateway.webhooks")
        where = f"/webhooks/{row['id']}"
        assert await visitor.done(f"{where}/test") == where
        text = await visitor.see(where)
        assert "waiting" in text or "given up" in text or "delivered" in text
        assert secret not in text
        await visitor.done(f"{where}/disable")
        await visitor.done(f"{where}/enable")
        assert "whsec_" in (await visitor.do(f"{where}/rotate")).text
        assert await visitor.done(f"{where}/delete") == "/webhooks"


async def test_empty_lists_say_what_would_be_there(world, visitor):
    """A fresh installation explains itself on every page."""
    await world.rows("TRUNCATE gateway.revocations, gateway.api_keys, gateway.tenants CASCADE")
    said = {
        "/": "No call has ended",
        "/tenants": "There is no tenant yet",
        "/calls": "No call is under way",
        "/batches": "There is no batch",
        "/files": "There is no file",
        "/audit/refusals": "Nothing was refused",
        "/notices": "There was none yet",
        "/webhooks": "Nobody is told yet",
        "/usage": "Nothing yet",
    }
    for path, text in said.items():
        assert text in await visitor.see(path), path


async def test_long_lists_have_pages(world, visitor):
    """Tenants and changes are listed fifty at a time, each once."""
    for number in range(53):
        await world.accounts.create(f"many-{number:02}", {})
    first = await visitor.see("/tenants?match=many")
    (more,) = re.findall(r'href="(/tenants\?[^"]*after=[^"]+)"', first)
    second = await visitor.see(html.unescape(more))
    names = [re.findall(r">(many-\d\d)</a>", text) for text in (first, second)]
    assert [len(each) for each in names] == [50, 3]
    assert not set(names[0]) & set(names[1])
    assert re.search(r'href="/audit\?before=\d+"', await visitor.see("/audit"))


async def test_batches_and_files_have_pages_to_the_end(world, visitor, made):
    """Each once, with what was asked kept from page to page."""
    await world.rows(
        "INSERT INTO gateway.batches (id, tenant_id, key_id, endpoint, input_file_id,"
        " completion_window, idempotency_key, fingerprint, expires_at, status) SELECT"
        " 'batch_' || n, tenant_id, key_id, endpoint, input_file_id, completion_window,"
        " 'key ' || n, fingerprint, expires_at, 'cancelled'"
        " FROM gateway.batches, generate_series(1, 110) AS n WHERE id = $1",
        made["batch"],
    )
    await world.rows(
        "INSERT INTO gateway.files (id, tenant_id, purpose, filename, bytes, blob)"
        " SELECT 'file-' || n, tenant_id, purpose, filename, bytes, 'none'"
        " FROM gateway.files, generate_series(1, 110) AS n WHERE id = $1",
        made["file"],
    )
    for first, row, filtered, total in (
        ("/batches?tenant=acme&status=cancelled", r'href="/batches/(batch_\d+)"', "status=", 110),
        ("/files?tenant=acme", r'<tr id="([^"]+)"', "tenant=", 111),
    ):
        where, found = first, list[str]()
        while where:
            text = await visitor.see(where)
            found += re.findall(row, text)
            after = re.findall(r'href="(/\w+\?[^"]*before=[^"]+)"', text)
            where = html.unescape(after[0]) if after else ""
            assert filtered in where or not where
        assert (len(found), len(set(found))) == (total, total)
        assert "From the start" in text
    assert (await visitor.get("/files?before=file-none")).status_code == 400


async def test_unknown_things_are_404_pages(visitor):
    """Ids that are not there, in the shell, without an echo of what was asked."""
    for path in ("/tenants/ten_none", "/keys/key_none", "/batches/batch_none", "/webhooks/wh_none"):
        text = await visitor.see(path, 404)
        assert "Nothing here" in text
    assert "choose" not in await visitor.see("/usage?span=choose", 400)
    assert (await visitor.post("/usage", data={"csrf": visitor.csrf})).status_code == 405


def test_bars_add_up_and_every_slot_is_there():
    """Pieces stack without gap or overlap, the greatest series first, the rest gray and last."""
    at = datetime(2030, 1, 1, tzinfo=UTC)
    rows = [
        {"at": at + timedelta(hours=hour), "name": name, "label": name, "charged_tokens": tokens}
        for hour, name, tokens in ((0, "a", 10), (0, None, 5), (2, "b", 30), (2, "a", 10))
    ]
    chart = charts.stacked("title", rows, (at, at + timedelta(hours=4)), "hour")
    assert [bar.total for bar in chart.bars] == [15, 0, 40, 0]
    assert [(each.label, each.color) for each in chart.series] == [
        ("b", 0),
        ("a", 1),
        (charts.REST, charts.COLORS),
    ]
    assert chart.ticks[0] >= 40
    for bar in chart.bars:
        below = charts.HEIGHT
        for piece in bar.pieces:
            assert piece.y + piece.height == pytest.approx(below, abs=0.01)
            below = piece.y
        assert below >= 0


def test_days_are_dates_and_nothing_is_nothing():
    """A chart of days has one bar a UTC date, and one without rows has no height to divide by."""
    since = datetime(2030, 2, 27, tzinfo=UTC)
    chart = charts.stacked("title", [], (since, since + timedelta(days=3)), "day")
    assert [bar.label for bar in chart.bars] == ["27 Feb", "28 Feb", "01 Mar"]
    assert (chart.total, chart.series) == (0, ())


@pytest.mark.parametrize(
    ("said", "wanted"),
    [
        (spoken.number(1234567), "1 234 567"),
        (spoken.number(None), spoken.NONE),
        (spoken.limit(None), "unlimited"),
        (spoken.limit(0), "0"),
        (spoken.short(999), "999"),
        (spoken.short(999_999), "1 M"),
        (spoken.short(12_345), "12.3 k"),
        (spoken.milliseconds(12.4), "12 ms"),
        (spoken.milliseconds(1500), "1.50 s"),
        (spoken.size(0), "0 B"),
        (spoken.size(1536), "1.5 KiB"),
        (spoken.span(3661), "1 h 1 min"),
        (spoken.span(0.2), "0 s"),
        (spoken.span(86_400), "1 d"),
        (spoken.share(99.9, 100), 99),
        (spoken.share(114, 100), 114),
        (spoken.share(5, 0), 100),
        (spoken.share(0, None), 0),
        (spoken.plural(1, "call"), "1 call"),
        (spoken.plural(2, "call"), "2 calls"),
    ],
)
def test_numbers_read_well(said, wanted):
    """Thin separators, units, and never more than is true."""
    assert str(said).replace(spoken.THIN, " ") == str(wanted)
