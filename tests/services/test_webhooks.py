"""The book of webhooks: what is accepted, what is shown of a secret, and the record."""

import base64
import json

import pytest
import trio

from tests.account import caller, past_row
from trio_gateway.services.account_rows import NotFound, Refused, Unfit
from trio_gateway.services.accounts import Accounts
from trio_gateway.services.ledger.ledger import Ledger
from trio_gateway.services.notices.addresses import check_url, parse_hosts
from trio_gateway.services.notices.webhooks import WebhookBook

HOSTS = "hooks.example.com, alerts.example.com:8443, 127.0.0.1:9000, localhost:9000, [::1]:9000"
URL = "https://hooks.example.com/budgets?token=1"
LIMIT = 60


@pytest.fixture
async def book(postgres):
    with trio.fail_after(LIMIT):
        yield WebhookBook(postgres, "test", HOSTS)


@pytest.mark.parametrize(
    "url",
    [
        "https://hooks.example.com",
        "https://HOOKS.example.com:443/a/b%20c?d=e",
        "https://alerts.example.com:8443/",
        "http://127.0.0.1:9000/x",
        "http://localhost:9000?x",
        "http://[::1]:9000/",
        "https://127.0.0.1:9000/",
    ],
)
def test_addresses_on_the_list_are_accepted(url):
    """Https, and http on loopback; a default port may be written or left out."""
    check_url(url, parse_hosts(HOSTS))


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("", "https"),
        ("ftp://hooks.example.com/", "https"),
        ("hooks.example.com", "https"),
        ("https://", "https"),
        ("https://user@hooks.example.com/", "https"),
        ("https://user:secret@hooks.example.com/", "https"),
        ("https://hooks.example.com@evil.example/", "https"),
        ("https://hooks.example.com\\@evil.example/", "https"),
        ("https://hooks.example.com/#x", "https"),
        ("https://hooks.example.com/ x", "https"),
        ("https://hooks.example.com/\r\nx", "https"),
        ("https://hooks.example.com\n", "https"),
        ("https://hooks.example.com/ä", "https"),
        ("https://hööks.example.com/", "https"),
        ("https://hooks.example.com/%zz", "https"),
        ("https://hooks.example.com/" + "a" * 2000, "2000"),
        ("https://hooks.example.com:0/", "port"),
        ("https://hooks.example.com:99999/", "port"),
        ("http://hooks.example.com/", "http is for loopback"),
        ("http://127.1:9000/", "http is for loopback"),
        ("http://2130706433:9000/", "http is for loopback"),
        ("http://localhost.evil.example:9000/", "http is for loopback"),
        ("https://evil.example/", "WEBHOOK_HOSTS"),
        ("https://sub.hooks.example.com/", "WEBHOOK_HOSTS"),
        ("https://hooks.example.com.evil.example/", "WEBHOOK_HOSTS"),
        ("https://hooks.example.com./", "WEBHOOK_HOSTS"),
        ("https://hooks.example.com:8443/", "WEBHOOK_HOSTS"),
        ("https://alerts.example.com/", "WEBHOOK_HOSTS"),
        ("http://127.0.0.1/", "WEBHOOK_HOSTS"),
        ("http://127.0.0.2:9000/", "WEBHOOK_HOSTS"),
    ],
)
async def test_other_addresses_are_refused_and_the_field_named(book, url, words):
    """At creation, at a change, and before an answer could tell what listens there."""
    await book.create("ops", URL)
    for change in (book.create("other", url), book.update("ops", {"url": url})):
        with pytest.raises(Refused, match=words) as caught:
            await change
        assert caught.value.param == "url"
    assert [row["url"] for row in await book.listing()] == [URL]


async def test_without_a_list_nothing_is_allowed(postgres):
    """The list is empty by default, and then no webhook can be made."""
    with pytest.raises(Refused, match="WEBHOOK_HOSTS"):
        await WebhookBook(postgres, "test", "").create("ops", URL)


async def test_a_secret_is_shown_once_and_recorded_nowhere(book, postgres):
    """At creation and at rotation; neither lists nor events hold it."""
    made = await book.create("ops", URL)
    rotated = await book.rotate("ops")
    secrets = [made["secret"], rotated["secret"]]
    assert secrets[0] != secrets[1]
    for secret in secrets:
        assert secret.startswith("whsec_")
        assert len(base64.b64decode(secret.removeprefix("whsec_"), validate=True)) == 32
    later = [await book.show("ops"), *(await book.listing()), await book.update("ops", {})]
    later += [await book.test("ops"), await book.delete("ops")]
    events = [dict(row) for row in await postgres.fetch("SELECT * FROM gateway.admin_events")]
    text = json.dumps([later, events], default=str)
    assert "whsec_" not in text
    assert all(secret.removeprefix("whsec_") not in text for secret in secrets)
    assert '"secret"' not in text


async def test_every_change_is_recorded_with_what_was_and_what_is(book, postgres):
    """One event for each act, and none for what changes nothing."""
    await Accounts(postgres, "test").create("acme", {})
    made = await book.create("ops", URL)
    other = "https://hooks.example.com/other"
    changed = await book.update(made["id"], {"url": other, "tenant": "acme"})
    assert (changed["url"], changed["tenant"]) == (other, "acme")
    for disabled in (True, True, False, False):
        row = await book.update("ops", {"disabled": disabled})
        assert (row["disabled_at"] is not None) is disabled
    assert (await book.update("ops", {"tenant": None}))["tenant_id"] is None
    await book.rotate("ops")
    await book.test("ops")
    await book.delete("ops")
    events = [
        dict(row)
        for row in await postgres.fetch(
            "SELECT actor, action, subject, before, after FROM gateway.admin_events"
            " WHERE action LIKE 'webhook.%' ORDER BY id"
        )
    ]
    assert [event["action"].removeprefix("webhook.") for event in events] == [
        *("create", "update", "disable", "enable", "update", "rotate", "test", "delete")
    ]
    assert {(event["actor"], event["subject"]) for event in events} == {("test", made["id"])}
    assert json.loads(events[1]["before"])["url"] == URL
    assert json.loads(events[1]["after"])["url"] == other
    assert (events[0]["before"], events[-1]["after"]) == (None, None)


async def test_names_and_tenants_are_checked(book, postgres):
    """One webhook of a name; a tenant that is there; an id or a name to find it by."""
    made = await book.create("ops", URL)
    for name in ("", "a b", "-a", "a" * 64):
        with pytest.raises(Refused) as caught:
            await book.create(name, URL)
        assert caught.value.param == "name"
    with pytest.raises(Refused, match="named ops already"):
        await book.create("ops", URL)
    for act in (book.create("two", URL, "ghost"), book.update("ops", {"tenant": "ghost"})):
        with pytest.raises(NotFound, match="no tenant 'ghost'"):
            await act
    for act in (book.show, book.delete, book.rotate, book.test):
        with pytest.raises(NotFound, match="no webhook 'ghost'"):
            await act("ghost")
    with pytest.raises(TypeError):
        await book.update("ops", {"secret": "x"})
    assert (await book.show(made["id"]))["id"] == (await book.show("ops"))["id"]
    with pytest.raises(NotFound):
        await book.delivery(1)


async def test_a_test_message_is_refused_where_none_could_be_sent(book, postgres):
    """A disabled webhook, and one whose host is not on the list any more."""
    await book.create("ops", URL)
    with pytest.raises(Refused) as caught:
        await WebhookBook(postgres, "test", "other.example.com").test("ops")
    assert caught.value.param == "url"
    await book.update("ops", {"disabled": True})
    with pytest.raises(Unfit, match="disabled"):
        await book.test("ops")
    assert (await book.show("ops"))["deliveries"] == []


async def test_a_notice_is_for_the_webhooks_that_match(book, postgres):
    """Those of its tenant and those of all, and none that is disabled or gone."""
    accounts = Accounts(postgres, "test")
    acme = await accounts.create("acme", {"budget": 100})
    await accounts.create("other", {})
    for name, tenant in (("all", None), ("acme", "acme"), ("other", "other"), ("off", None)):
        await book.create(name, URL, tenant)
    await book.update("off", {"disabled": True})
    await Ledger(postgres).write(
        [past_row(caller(tenant_id=acme["id"], key_id="gone"), 85, 1_900_000_000_000_000)]
    )
    waiting = {row["name"]: row["waiting"] for row in await book.listing()}
    assert waiting == {"all": 1, "acme": 1, "other": 0, "off": 0}
    (delivery,) = (await book.show("acme"))["deliveries"]
    assert (delivery["state"], delivery["attempts"], delivery["ended_at"]) == ("waiting", 0, None)
    await accounts.delete("other")
    assert len(await book.listing()) == 3


async def test_a_webhook_that_is_being_deleted_holds_up_no_ledger_row(book, postgres):
    """The row is stored while the deletion is under way, and the deletion goes through."""
    acme = await Accounts(postgres, "test").create("acme", {"budget": 100})
    await book.create("ops", URL)
    row = past_row(caller(tenant_id=acme["id"], key_id="gone"), 85, 1_900_000_000_000_000)

    async def delete(connection):
        await connection.execute("DELETE FROM gateway.webhooks")
        deleted.set()
        while not stored.is_set():
            await connection.execute("SELECT pg_sleep(0.01)")

    deleted, stored = trio.Event(), trio.Event()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(postgres.transact, delete)
        await deleted.wait()
        assert await Ledger(postgres).write([row]) == [row]
        stored.set()
    assert await book.listing() == []
    assert len(await postgres.fetch("SELECT FROM gateway.budget_notices")) == 1
