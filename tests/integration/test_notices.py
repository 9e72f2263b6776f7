"""Budgets of a real gateway over HTTP: noticed, extended, and receivers that hold nobody up."""

from datetime import UTC, datetime, timedelta

import pytest
import trio
from standardwebhooks import Webhook

from tests.integration.caller import PATIENCE
from tests.receiver import receiving, silence
from trio_gateway.clients.webhook import WebhookClient
from trio_gateway.pipeline.verify import verify
from trio_gateway.services.notices.deliveries import Deliveries
from trio_gateway.services.notices.notices import Notices
from trio_gateway.services.notices.webhooks import WebhookBook

LIMIT = 180
WHOLE = {
    "model": "llama3.2",
    "messages": [{"role": "user", "content": "one two three"}],
    "stream": False,
}
SLOWEST = 6.0  # seconds for a call that waits for nobody; a receiver is given 10


@pytest.fixture
async def sender(world):
    """A sending process beside the gateway; yields a function that adds a webhook."""
    with trio.fail_after(LIMIT):
        async with trio.open_nursery() as nursery:

            async def webhook(receiver):
                book = WebhookBook(world.postgres, "test", receiver.host)
                made = await book.create("ops", receiver.url)
                sending = Deliveries(world.postgres, WebhookClient(), receiver.host)
                await nursery.start(sending.run)
                return made

            yield webhook
            nursery.cancel_scope.cancel()
        async with trio.open_nursery() as nursery:
            for _ in range(3):  # connections of the pool, cleared of what was cancelled
                nursery.start_soon(world.postgres.fetch, "SELECT pg_sleep(0.01)")


async def burn(world, key):
    """Call until the budget refuses; return how many calls were answered."""
    for count in range(100):
        answer = await world.post("/api/chat", WHOLE, key)
        if answer.status_code != 200:
            assert answer.status_code == 429
            return count
        await world.settled()
    raise AssertionError


@pytest.mark.usefixtures("same_day")
async def test_a_budget_that_runs_out_over_http_is_told_in_two_messages(world, sender):
    """80 and then 100, the latter at the refusal if a rest too small was left; each once."""
    async with receiving() as receiver:
        made = await sender(receiver)
        key = await world.tenant_with_key("poor", {"all_models": True, "budget": 300})
        assert await burn(world, key) > 1
        await burn(world, key)
        # two that wait together may come in either order
        eighty, hundred = sorted(
            await receiver.until(2), key=lambda got: got.json["data"]["threshold"]
        )
        rows = await Notices(world.postgres).current()
        assert len(receiver.got) == 2
    for got, threshold in ((eighty, 80), (hundred, 100)):
        body = Webhook(made["secret"]).verify(got.body, got.headers)
        data = body["data"]
        assert (data["threshold"], data["budget"]) == (threshold, 300)
        assert (data["tenant"]["name"], data["key"]) == ("poor", None)
        assert data["period_start"] == f"{datetime.now(UTC):%Y-%m-01}"
        assert data["spent"] >= 240
    assert [(row["tenant"], row["threshold"]) for row in rows] == [("poor", 100)]


async def test_racing_calls_are_noticed_once(world, sender):
    """Twenty at once over HTTP, through the group commit."""
    async with receiving() as receiver:
        await sender(receiver)
        key = await world.tenant_with_key("busy", {"all_models": True, "budget": 100_000})
        async with trio.open_nursery() as nursery:
            for _ in range(20):
                nursery.start_soon(world.post, "/api/chat", WHOLE, key)
        await world.settled()
        spent = (await world.accounts.show("busy"))["spent"]
        await world.accounts.update("busy", {"budget": spent + 3})
        async with trio.open_nursery() as nursery:
            for _ in range(20):
                nursery.start_soon(world.post, "/api/chat", WHOLE, key)
        await world.settled()
        await receiver.until(2)
        rows = await Notices(world.postgres).listing()
    assert sorted(row["threshold"] for row in rows) == [80, 100]
    assert len(receiver.got) == 2


async def test_a_receiver_that_never_answers_slows_no_call(world, sender):
    """Calls that reach a threshold, and all others, are answered while it keeps silent."""
    async with receiving() as receiver:
        receiver.always = silence
        await sender(receiver)
        key = await world.tenant_with_key("poor", {"all_models": True, "budget": 300})
        with trio.fail_after(SLOWEST):
            assert (await world.post("/api/chat", WHOLE, key)).status_code == 200
            await world.settled()
        await burn(world, key)
        await receiver.until(1)
        for who in (world.key, world.key):
            with trio.fail_after(SLOWEST):
                assert (await world.post("/api/chat", WHOLE, who)).status_code == 200
                await world.settled()


async def test_an_increase_gives_room_at_once_and_ends_on_time(world):
    """Calls fit within the time of any change, headers tell, and after the end none fits."""
    key = await world.tenant_with_key("poor", {"all_models": True, "budget": 40})
    assert await burn(world, key) >= 1
    await world.accounts.extend("poor", 100_000, timedelta(hours=1))
    with trio.fail_after(PATIENCE):
        while (answer := await world.post("/api/chat", WHOLE, key)).status_code != 200:
            assert answer.status_code == 429
    row = await world.accounts.extend("poor", 100_000, timedelta(seconds=2))
    assert answer.headers["x-budget-limit-tokens"] == "100040"
    while answer.status_code == 200:
        before = (await world.rows("SELECT now() AS at"))[0]["at"]
        answer = await world.post("/api/chat", WHOLE, key)
        if answer.status_code == 200:
            assert before < row["budget_extra_until"]
        await world.settled()
    assert (await world.rows("SELECT now() AS at"))[0]["at"] >= row["budget_extra_until"]
    assert answer.headers["x-budget-limit-tokens"] == "40"
    found = await verify(world.postgres, world.gateway.redis)
    assert (found["differences"], found["holds_open"]) == ([], 0)
