"""Deliveries: every notice to every webhook, whatever becomes of senders and receivers."""

import contextlib
from datetime import UTC, datetime, timedelta

import pytest
import trio
from standardwebhooks import Webhook, WebhookVerificationError

from deploy.staging.programs import free_port
from tests.account import caller, past_row
from tests.receiver import Receiver, receiving, silence
from trio_gateway.clients.bridge import open_bridge
from trio_gateway.clients.postgres import open_postgres
from trio_gateway.clients.webhook import WebhookClient
from trio_gateway.services.accounts import Accounts
from trio_gateway.services.keyring import Keyring
from trio_gateway.services.ledger.ledger import Ledger
from trio_gateway.services.notices import deliveries as sending
from trio_gateway.services.notices.deliveries import Deliveries
from trio_gateway.services.notices.webhooks import WebhookBook
from trio_gateway.services.tenant_rows import read_installation_secret

LIMIT = 90
STATES = "SELECT * FROM gateway.deliveries ORDER BY id"


class Desk:
    """A tenant whose budget runs out as told, webhooks, and processes that send."""

    def __init__(self, postgres, database, nursery):
        self.postgres = postgres
        self.database = database
        self.nursery = nursery
        self.hosts = ""
        self.secrets = {}

    async def webhook(self, receiver, name="ops", **values):
        """Add a webhook that leads to the receiver."""
        self.hosts = f"{self.hosts},{receiver.host}"
        made = await self.book.create(name, receiver.url, **values)
        self.secrets[name] = made["secret"]
        return made

    @property
    def book(self):
        return WebhookBook(self.postgres, "test", self.hosts)

    async def notice(self, count=1, spent=80):
        """Have so many tenants spend 80 per cent of a budget, or more at once."""
        now = int(datetime.now(UTC).timestamp() * 1_000_000)
        for _ in range(count):
            name = f"t{len(self.secrets)}-{datetime.now(UTC):%f}"
            tenant = await Accounts(self.postgres, "test").create(name, {"budget": 100})
            who = caller(tenant_id=tenant["id"], key_id="gone")
            await Ledger(self.postgres).write([past_row(who, spent, now)])

    async def start(self, hosts=None, limit=20.0, noticed=lambda _: None):
        """Begin to send, as a process of its own would; return its scope."""
        hosts = self.hosts if hosts is None else hosts
        sender = Deliveries(self.postgres, WebhookClient(limit=limit), hosts, noticed)
        scope = trio.CancelScope()

        async def run(task_status):
            with scope:
                await sender.run(task_status)

        await self.nursery.start(run)
        return scope

    async def rows(self):
        return [dict(row) for row in await self.postgres.fetch(STATES)]

    async def until(self, condition):
        """Wait until the rows are as wanted; return them."""
        # other processes cannot set an event of ours
        while not condition(rows := await self.rows()):  # noqa: ASYNC110
            await trio.sleep(0.02)
        return rows

    async def ended(self, state="delivered"):
        """Wait until all deliveries have ended so."""
        return await self.until(lambda rows: {row["state"] for row in rows} == {state})


async def at_rest(postgres):
    """Wait until no connection of the pool is being cleared of a query that was cancelled."""
    async with trio.open_nursery() as nursery:
        for _ in range(4):
            nursery.start_soon(postgres.fetch, "SELECT pg_sleep(0.01)")


@pytest.fixture
async def desk(postgres, database, monkeypatch):
    monkeypatch.setattr(sending, "POLL", 0.05)
    monkeypatch.setattr(sending, "PAUSES", (0.05,) * 1000)  # never given up by the way
    with trio.fail_after(LIMIT):
        async with trio.open_nursery() as nursery:
            yield Desk(postgres, database, nursery)
            nursery.cancel_scope.cancel()
        await at_rest(postgres)


@pytest.fixture
async def receiver():
    async with receiving() as opened:
        yield opened


async def test_a_notice_arrives_whole_and_signed(desk, receiver):
    """By the published verifier of Standard Webhooks; the body says what the row says."""
    await desk.webhook(receiver)
    tenant = await Accounts(desk.postgres, "test").create("acme", {"budget": 1000})
    secret = await read_installation_secret(desk.postgres)
    key = await Keyring(desk.postgres, secret, "test").issue(
        "acme", {"name": "k", "budget": 100, "budget_period": "total"}
    )
    now = datetime.now(UTC)
    who = caller(tenant_id=tenant["id"], key_id=key["id"])
    await Ledger(desk.postgres).write([past_row(who, 85, int(now.timestamp() * 1_000_000))])
    await desk.start()
    (got,) = await receiver.until(1)
    body = Webhook(desk.secrets["ops"]).verify(got.body, got.headers)
    at = datetime.fromisoformat(body.pop("timestamp"))
    assert abs(at - now) < timedelta(seconds=LIMIT)
    assert body == {
        "type": "budget.threshold",
        "data": {
            "tenant": {"id": tenant["id"], "name": "acme"},
            "key": {"id": key["id"], "name": "k"},
            "threshold": 80,
            "period": "total",
            "period_start": None,
            "budget": 100,
            "spent": 85,
        },
    }
    assert got.target == "/hook"
    assert got.headers["content-type"] == "application/json"
    assert "authorization" not in got.headers
    with pytest.raises(WebhookVerificationError):
        Webhook(desk.secrets["ops"]).verify(got.body + b" ", got.headers)
    (row,) = await desk.ended()
    assert (row["attempts"], row["status_code"], row["error"]) == (1, 204, None)
    assert row["message_id"] == got.id


@pytest.mark.usefixtures("same_day")
async def test_a_tenants_notice_names_no_key_and_its_period(desk, receiver):
    """`key` is null, and the first day of the period is there."""
    await desk.webhook(receiver)
    await desk.notice()
    await desk.start()
    (got,) = await receiver.until(1)
    assert got.json["data"]["key"] is None
    assert got.json["data"]["period_start"] == f"{datetime.now(UTC):%Y-%m-01}"


async def test_two_processes_deliver_each_notice_once(desk, receiver, database):
    """Both at work on the same rows, from pools of their own."""
    await desk.webhook(receiver)
    await desk.notice(40)
    async with open_bridge() as bridge, open_postgres(bridge, database, size=4) as other:
        twin = Desk(other, database, desk.nursery)
        scopes = [await desk.start(), await twin.start(desk.hosts)]
        await receiver.until(40)
        await desk.ended()
        for scope in scopes:
            scope.cancel()
        await at_rest(other)
    assert len({got.id for got in receiver.got}) == len(receiver.got) == 40
    assert {row["attempts"] for row in await desk.rows()} == {1}


@pytest.mark.parametrize("answer", [204, 500])
async def test_80_per_cent_is_told_before_100(desk, receiver, database, answer):
    """Where one call passes both and two processes send; the first need not be taken."""
    receiver.always = answer
    await desk.webhook(receiver)
    await desk.notice(10, spent=100)
    async with open_bridge() as bridge, open_postgres(bridge, database, size=4) as other:
        twin = Desk(other, database, desk.nursery)
        scopes = [await desk.start(), await twin.start(desk.hosts)]
        while len({got.id for got in receiver.got}) < 20:
            await receiver.until(len(receiver.got) + 1)
        for scope in scopes:
            scope.cancel()
        await at_rest(other)
    came: dict[str, list[int]] = {}
    for got in receiver.got:
        came.setdefault(got.json["data"]["tenant"]["id"], []).append(got.json["data"]["threshold"])
    assert [thresholds[0] for thresholds in came.values()] == [80] * 10
    assert answer == 500 or list(came.values()) == [[80, 100]] * 10


async def test_a_receiver_that_was_down_gets_it_when_it_is_up(desk):
    """No connection, then 500, then taken: one message id throughout, signed anew each time."""
    port = free_port()
    await desk.webhook(Receiver(port))
    await desk.notice()
    await desk.start()
    (row,) = await desk.until(lambda rows: rows[0]["error"] is not None)
    assert (row["state"], row["error"], row["status_code"]) == ("waiting", "no connection", None)
    async with receiving(port) as receiver:
        receiver.answers += [500]
        first, second = await receiver.until(2)
        (row,) = await desk.ended()
    assert (first.id, first.body) == (second.id, second.body) == (row["message_id"], first.body)
    for got in (first, second):
        Webhook(desk.secrets["ops"]).verify(got.body, got.headers)
    assert (row["status_code"], row["error"]) == (204, None)
    assert row["attempts"] >= 3


async def test_a_sender_that_dies_leaves_it_to_the_next(desk, receiver, monkeypatch):
    """After the lease the same message is sent again, and nobody sends it before."""
    monkeypatch.setattr(sending, "LEASE", timedelta(seconds=300))
    receiver.answers.append(silence)
    await desk.webhook(receiver)
    await desk.notice()
    scope = await desk.start(limit=600)
    await receiver.until(1)
    scope.cancel()
    await desk.notice()
    await desk.start()
    first, other = await receiver.until(2)
    assert first.id != other.id
    left = "SELECT extract(epoch FROM next_at - now())::float8 AS left FROM gateway.deliveries"
    (row,) = await desk.postgres.fetch(f"{left} WHERE message_id = $1", first.id)
    assert 200 < row["left"] <= 300
    over = "UPDATE gateway.deliveries SET next_at = now() WHERE message_id = $1"
    await desk.postgres.fetch(over, first.id)
    *_, second = await receiver.until(3)
    rows = {row["message_id"]: row["attempts"] for row in await desk.ended()}
    assert (first.id, first.body, rows) == (second.id, second.body, {first.id: 2, other.id: 1})


async def test_an_attempt_that_outlived_its_lease_says_nothing(desk, receiver, monkeypatch):
    """What the later attempt recorded stands."""
    monkeypatch.setattr(sending, "LEASE", timedelta(0))
    go_on = trio.Event()

    async def late(stream):
        await go_on.wait()
        await stream.send_all(b"HTTP/1.1 500 X\r\nContent-Length: 0\r\n\r\n")

    receiver.answers.append(late)
    await desk.webhook(receiver)
    await desk.notice()
    await desk.start(limit=60)
    await receiver.until(1)
    await desk.start()
    (row,) = await desk.ended()
    go_on.set()
    await desk.notice()
    await receiver.until(3)
    assert (await desk.rows())[0] == row


async def test_a_redirect_is_not_followed(desk, receiver):
    """It is an answer that did not take the message; where it points nobody is asked."""
    async with receiving() as other:
        head = b"HTTP/1.1 307 X\r\nLocation: %s\r\nContent-Length: 0\r\n\r\n"
        receiver.always = head % other.url.encode()
        await desk.webhook(receiver)
        await desk.notice()
        await desk.start(f"{desk.hosts},{other.host}")
        await receiver.until(2)
        (row,) = await desk.until(lambda rows: rows[0]["status_code"] is not None)
        assert (row["state"], row["status_code"]) == ("waiting", 307)
        assert other.got == []


async def test_a_host_that_left_the_list_gets_nothing(desk, receiver):
    """The list is looked at again before each attempt, by each process for itself."""
    await desk.webhook(receiver)
    await desk.notice()
    scope = await desk.start("other.example.com")
    (row,) = await desk.until(lambda rows: rows[0]["attempts"] > 1)
    assert (row["state"], receiver.got) == ("waiting", [])
    assert "allowlist" in row["error"]
    scope.cancel()
    await desk.start()
    await desk.ended()


async def test_after_the_last_attempt_it_is_given_up(desk, receiver, monkeypatch):
    """One more attempt than there are pauses, and then none."""
    monkeypatch.setattr(sending, "PAUSES", (0.05,) * 8)
    receiver.always = 503
    await desk.webhook(receiver)
    await desk.notice()
    await desk.start()
    (row,) = await desk.ended("given_up")
    assert (row["attempts"], row["status_code"]) == (len(sending.PAUSES) + 1, 503)
    assert row["ended_at"] is not None
    assert len(receiver.got) == row["attempts"]


async def test_gone_is_taken_at_its_word(desk, receiver):
    """410 ends a delivery at once."""
    receiver.always = 410
    await desk.webhook(receiver)
    await desk.notice()
    await desk.start()
    (row,) = await desk.ended("given_up")
    assert (row["attempts"], row["status_code"]) == (1, 410)


@pytest.mark.parametrize(
    ("asked", "least", "most"),
    [
        ("600", 500, 600),
        ("999999999", 3500, 3600),
        ("Fri, 31 Dec 2100 23:59:59 GMT", 3500, 3600),
        ("-5", 100, 240),
        ("soon", 100, 240),
        ("1 Jan 99999999999 0:0:0 +0", 100, 240),
        ("", 100, 240),
        ("1" * 500, 100, 240),
    ],
)
async def test_retry_after_is_honored_within_reason(
    desk, receiver, monkeypatch, asked, least, most
):
    """Up to an hour; what is no number of seconds and no date is as good as nothing."""
    monkeypatch.setattr(sending, "PAUSES", (200.0,) * 8)  # up to a fifth more
    answer = f"HTTP/1.1 429 X\r\nRetry-After: {asked}\r\nContent-Length: 0\r\n\r\n"
    receiver.always = answer.encode()
    await desk.webhook(receiver)
    await desk.notice()
    await desk.start()
    await desk.until(lambda rows: rows[0]["status_code"] is not None)
    (row,) = await desk.postgres.fetch(
        "SELECT extract(epoch FROM next_at - now())::float8 AS left FROM gateway.deliveries"
    )
    assert least <= row["left"] <= most


async def test_an_endless_answer_is_not_read(desk, receiver):
    """A few KiB, then the connection is closed; the status counts."""
    sent = 0

    async def flood(stream):
        nonlocal sent
        await stream.send_all(b"HTTP/1.1 200 X\r\nTransfer-Encoding: chunked\r\n\r\n")
        with contextlib.suppress(trio.BrokenResourceError):
            while True:
                await stream.send_all(b"1000\r\n" + b"x" * 4096 + b"\r\n")
                sent += 4096

    receiver.always = flood
    await desk.webhook(receiver)
    await desk.notice()
    await desk.start(limit=60)
    (row,) = await desk.ended()
    assert (row["status_code"], row["error"]) == (200, None)
    assert sent < 16 * 1024 * 1024  # what the sockets hold


@pytest.mark.parametrize(
    "answer", [b"nonsense\r\n\r\n", b"HTTP/1.1 2", b"", b"HTTP/1.1 200 X\r\nA: " + b"a" * 200_000]
)
async def test_what_is_no_answer_is_tried_again(desk, receiver, answer):
    """Other bytes, a hang-up and an endless head all end the attempt, not the sender."""
    receiver.answers.append(answer)
    await desk.webhook(receiver)
    await desk.notice()
    await desk.start()
    await receiver.until(2)
    await desk.ended()


async def test_a_silent_receiver_leaves_the_others_their_turns(desk, receiver):
    """However much waits for it, and for longer than the others' messages take."""
    async with receiving() as silent:
        silent.always = silence
        await desk.webhook(silent, "silent")
        await desk.notice(20)
        await desk.webhook(receiver)
        await desk.notice(5)
        await desk.start(limit=60)
        await receiver.until(5)
        assert len(silent.got) <= sending.EACH


async def test_a_receiver_that_does_not_answer_in_time_has_not_taken_it(desk, receiver):
    """The limit covers all of an attempt."""
    receiver.answers.append(silence)
    await desk.webhook(receiver)
    await desk.notice()
    await desk.start(limit=0.2)
    (row,) = await desk.until(lambda rows: rows[0]["error"] is not None)
    assert row["error"] == "no answer in time"
    await desk.ended()


async def test_a_disabled_webhook_waits_until_it_is_enabled(desk, receiver):
    """What was due before goes out then; what came meanwhile passed it by."""
    await desk.webhook(receiver)
    await desk.notice()
    await desk.book.update("ops", {"disabled": True})
    await desk.notice()
    async with receiving() as other:
        await desk.webhook(other, "other")
        await desk.notice()
        await desk.start()
        await other.until(1)
    assert receiver.got == []
    await desk.book.update("ops", {"disabled": False})
    await receiver.until(1)
    await desk.ended()
    assert len(receiver.got) == 1


async def test_a_new_secret_signs_from_the_next_attempt_on(desk, receiver):
    """Also what was tried under the old one."""
    receiver.answers += [500]
    await desk.webhook(receiver)
    old = desk.secrets["ops"]
    await desk.notice()
    scope = await desk.start()
    await receiver.until(1)
    await desk.until(lambda rows: rows[0]["error"] is not None)
    scope.cancel()
    new = (await desk.book.rotate("ops"))["secret"]
    await desk.start()
    got = (await receiver.until(len(receiver.got) + 1))[-1]
    Webhook(new).verify(got.body, got.headers)
    with pytest.raises(WebhookVerificationError):
        Webhook(old).verify(got.body, got.headers)


async def test_a_test_message_goes_the_same_way(desk, receiver):
    """Signed and recorded as notices are; it names the webhook."""
    made = await desk.webhook(receiver)
    row = await desk.book.test("ops")
    assert (row["state"], row["attempts"]) == ("waiting", 0)
    await desk.start()
    (got,) = await receiver.until(1)
    body = Webhook(desk.secrets["ops"]).verify(got.body, got.headers)
    assert (body["type"], body["data"]["webhook"]["id"]) == ("webhook.test", made["id"])
    await desk.ended()
    assert (await desk.book.delivery(row["id"]))["status_code"] == 204


async def test_each_notice_is_told_once_by_all_processes_together(desk):
    """With or without webhooks: the counts of several processes add up."""
    told: list[int] = []

    async def until(count):
        while len(told) < count:  # noqa: ASYNC110 - as above
            await trio.sleep(0.02)

    await desk.notice(3)
    for _ in range(3):
        await desk.start(noticed=told.append)
    await desk.notice(2)
    await until(5)
    await desk.notice()
    await until(6)
    assert told == [80] * 6


async def test_wake_sends_without_waiting_for_the_poll(desk, receiver, monkeypatch):
    """Whoever hears of a notice can have it sent at once."""
    monkeypatch.setattr(sending, "POLL", 3600)
    await desk.webhook(receiver)
    sender = Deliveries(desk.postgres, WebhookClient(), desk.hosts)
    await desk.nursery.start(sender.run)
    await desk.notice()
    sender.wake()
    await receiver.until(1)


async def test_a_secret_that_is_none_ends_no_process(desk, receiver):
    """A row written by hand is a failed attempt, and the others go on."""
    await desk.webhook(receiver)
    await desk.postgres.fetch("UPDATE gateway.webhooks SET secret = 'whsec_?'")
    await desk.notice()
    await desk.start()
    (row,) = await desk.until(lambda rows: rows[0]["error"] is not None)
    assert "secret" in row["error"]
    assert receiver.got == []


async def test_what_is_old_is_pruned(desk, receiver):
    """After 90 days, but for what keeps a total from being noticed again."""
    await desk.webhook(receiver)
    await desk.notice()
    await desk.book.test("ops")
    accounts = Accounts(desk.postgres, "test")
    now = int(datetime.now(UTC).timestamp() * 1_000_000)
    for name in ("kept", "gone"):
        made = await accounts.create(name, {"budget": 100, "budget_period": "total"})
        await Ledger(desk.postgres).write(
            [past_row(caller(tenant_id=made["id"], key_id="x"), 80, now)]
        )
    await accounts.delete("gone")
    sender = Deliveries(desk.postgres, WebhookClient(), desk.hosts)
    age = "SET {} = now() - interval '{} days'"
    for days, left, notices in ((89, 4, 3), (91, 0, 1)):
        await desk.postgres.fetch("UPDATE gateway.deliveries " + age.format("created_at", days))
        await desk.postgres.fetch("UPDATE gateway.budget_notices " + age.format("at", days))
        await sender.prune()
        assert len(await desk.rows()) == left
        assert len(await desk.postgres.fetch("SELECT FROM gateway.budget_notices")) == notices
