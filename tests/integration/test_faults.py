"""Workers, stores and whole installations die under live streams; every call is settled once."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator
from functools import partial
from typing import Any

import httpx
import pytest
import trio

from tests.integration import fleet as fleets
from tests.integration.calls import (
    SLOTS,
    Streaming,
    bearer,
    books_agree,
    chat,
    office,
    spread,
    stream,
)
from tests.integration.fleet import STOP_LIMIT, TICK, Fleet, Ollama, until
from trio_gateway.embedded import stores as embedded
from trio_gateway.embedded.stores import Stores
from trio_gateway.migrate import upgrade

GAP = 0.05  # seconds between two tokens
TOKENS = 40  # after which a stream waits for its end
STREAMS = {"model": "llama3.2", "token_gap": GAP, "tokens": TOKENS, "held": True}
LEASE = 2.0
DRAIN = "drain_begun"  # what a worker says of it
TOKEN = "a-token-of-the-first-admin-0123456789"
SETTINGS = {
    "hold_lease": LEASE,
    "sweep_interval": 0.5,
    "drain_timeout": 5,
    "backend_slots": SLOTS,
    "admin_token": TOKEN,
}


class Site:
    """Stores, an Ollama and a fleet, each of which can be made to fail."""

    def __init__(self, stores: Stores, sim: Ollama, start: Any) -> None:
        self.stores = stores
        self.sim = sim
        self._start = start
        self.fleet: Fleet = start()

    def start_again(self) -> None:
        """Start another fleet on the same stores."""
        self.fleet = self._start()

    def mend(self) -> None:
        """Start what a test that failed has left dead."""
        for store in (self.stores.redis, self.stores.postgres):
            if not store.running:
                store.start()
        if self.fleet.popen.poll() is not None:
            self.start_again()

    async def let_go(self) -> None:
        """Let the streams come to their end."""
        await self.sim.play()

    async def key(self, name: str) -> Any:
        """Make a tenant with a budget, whose counters are kept, and a key of it."""
        self.mend()
        await self.sim.forget()
        await self.sim.play(STREAMS)
        async with office(self.stores.database_url) as desk:
            return await desk.key(name, budget=10_000_000, budget_period="month")

    async def ask(self, key: Any, **headers: str) -> httpx.Response:
        """Make one whole call, and give its answer."""
        async with httpx.AsyncClient(base_url=self.fleet.base_url, timeout=60) as client:
            body = chat(stream=False, model="qwen3:8b")
            return await client.post("/api/chat", json=body, headers=bearer(key) | headers)

    async def served(self, key: Any, *, blank: bool = False) -> httpx.Response:
        """Ask until there is an answer; a refusal on the way is 503 and says when to retry.

        Of a Redis that came back `blank` a worker knows no model until its next look.
        """
        with trio.fail_after(STOP_LIMIT):
            while True:
                answer = await self.ask(key)
                if answer.status_code == 200:
                    return answer
                if not (blank and answer.status_code == 403):
                    assert answer.status_code == 503, answer.text
                    assert int(answer.headers["retry-after"]) >= 1
                await trio.sleep(0.1)

    async def counted(self, tenant: str, count: int) -> dict[str, int]:
        """Return the tokens of each live call by its last renewal, once there are some of all."""
        bearer_of = {"authorization": f"Bearer {TOKEN}"}
        async with httpx.AsyncClient(
            base_url=self.fleet.admin_url, headers=bearer_of, timeout=60
        ) as client:
            with trio.fail_after(STOP_LIMIT):
                while True:
                    answer = await client.get("/admin/v1/calls", params={"tenant": tenant})
                    tokens = {call["request_id"]: call["output_tokens"] for call in _data(answer)}
                    if len(tokens) == count and all(tokens.values()):
                        return tokens
                    await trio.sleep(TICK)

    async def settled(self, key: Any) -> list[dict[str, Any]]:
        """Return the key's rows, one for each generation, once the books agree."""
        state = await self.sim.state(open=0)
        assert state["open"] == 0
        async with office(self.stores.database_url) as desk:
            rows = await desk.settled(key, state["started"])
        await books_agree(self.stores)
        assert len({row["request_id"] for row in rows}) == len(rows)
        assert None not in {row["charged_tokens"] for row in rows}
        return rows


def _data(answer: httpx.Response) -> Any:
    assert answer.status_code == 200, answer.text
    return answer.json()["data"]


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("site")
    with (
        embedded.start(folder / "stores") as pair,
        fleets.ollama(folder) as sim,
        contextlib.ExitStack() as running,
    ):
        upgrade(pair.database_url)
        start = partial(fleets.fleet, "serve", folder, tuple(pair), sim.url, **SETTINGS)
        yield Site(pair, sim, lambda: running.enter_context(start()))


async def over(calls: list[Streaming]) -> None:
    with trio.fail_after(STOP_LIMIT):
        for call in calls:
            await call.ended.wait()


async def refused(site: Site, key: Any) -> None:
    """Wait for the first 503; nothing but a good answer may come before it."""
    with trio.fail_after(STOP_LIMIT):
        while (answer := await site.ask(key)).status_code != 503:
            assert answer.status_code == 200, answer.text
    assert int(answer.headers["retry-after"]) >= 1


def complete(call: Streaming) -> bool:
    """Whether the stream has its proper end."""
    if call.broke is not None:
        return False
    return call.lines[-1] == "data: [DONE]" or call.last.get("done") is True


async def test_a_killed_worker_is_replaced_and_its_calls_are_found_lost(site):
    """kill -9 mid-stream: the counts of the last renewal or later, and the other worker goes on."""
    key = await site.key("killed-worker")
    async with trio.open_nursery() as nursery:
        calls = await spread(nursery, site.fleet, key)
        known = await site.counted("killed-worker", len(calls))
        victim = max(site.fleet.loads().items(), key=lambda item: item[1])[0]
        os.kill(victim, signal.SIGKILL)
        await until(lambda: len(set(site.fleet.workers()) - {victim}) == 2)
        await site.let_go()
        await over(calls)
    broken = [call for call in calls if not complete(call)]
    assert 0 < len(broken) < len(calls)
    most = max(len(call.lines) for call in broken)
    rows = await site.settled(key)
    lost = [row for row in rows if row["outcome"] == "lost"]
    assert {row["outcome"] for row in rows} == {"lost", "completed"}
    assert len(lost) == len(broken)
    for row in lost:
        assert row["basis"] == "partial"
        assert known[row["request_id"]] <= row["completion_tokens"] <= most + 2
        assert row["charged_tokens"] == row["prompt_tokens"] + row["completion_tokens"]
    assert (await site.served(key)).status_code == 200


@pytest.mark.parametrize("loses", ["nothing", "everything"])
async def test_streams_outlive_a_restart_of_redis(site, loses):
    """With or without its data: calls under way go on and are settled; new ones get 503."""
    key = await site.key(f"redis-{loses}")
    async with trio.open_nursery() as nursery:
        calls = await spread(nursery, site.fleet, key)
        if loses == "everything":
            site.stores.redis.wipe()
        else:
            site.stores.redis.kill()
        for _ in range(6):
            await refused(site, key)
        site.stores.redis.start()
        await site.served(key, blank=loses == "everything")
        assert not any(call.ended.is_set() for call in calls)
        await site.let_go()
        await over(calls)
    assert all(map(complete, calls)), [call.broke or call.last for call in calls]
    rows = await site.settled(key)
    assert {(row["outcome"], row["basis"]) for row in rows} == {("completed", "final")}


async def test_streams_outlive_a_restart_of_postgresql(site):
    """Calls that end while it is away are settled when it returns; nobody is told 401."""
    key = await site.key("postgres")
    async with trio.open_nursery() as nursery:
        calls = await spread(nursery, site.fleet, key)
        site.stores.postgres.kill()
        await refused(site, key)
        for _ in range(6):
            assert (await site.ask(key)).status_code == 503
            unknown = await site.ask({"key": "nonsense"})
            assert unknown.status_code == 401
        assert not any(call.ended.is_set() for call in calls)
        await site.let_go()
        await over(calls)
        assert all(map(complete, calls)), [call.broke or call.last for call in calls]
        site.stores.postgres.start()
        await site.served(key)
    rows = await site.settled(key)
    assert {(row["outcome"], row["basis"]) for row in rows} == {("completed", "final")}


async def test_everything_is_settled_after_the_whole_installation_was_killed(site):
    """kill -9 of the supervisor and of both workers; the next start finds every call lost."""
    key = await site.key("killed-all")
    async with trio.open_nursery() as nursery:
        calls = await spread(nursery, site.fleet, key)
        for pid in [site.fleet.popen.pid, *site.fleet.descendants()]:
            os.kill(pid, signal.SIGKILL)
        await over(calls)
    assert not any(map(complete, calls))
    await until(lambda: not site.fleet.left())
    await site.fleet.ended()
    site.start_again()
    rows = await site.settled(key)
    assert {row["outcome"] for row in rows} == {"lost"}
    assert {row["basis"] for row in rows} <= {"partial", "estimated"}
    assert (await site.served(key)).status_code == 200


async def test_a_drain_while_postgresql_is_away_loses_nothing(site):
    """Streams end during the drain, nothing can be written; the next start writes it exactly."""
    key = await site.key("drained")
    async with trio.open_nursery() as nursery:
        calls = [await stream(nursery, site.fleet.base_url, key) for _ in range(3)]
        await until(lambda: min(len(call.lines) for call in calls) == TOKENS)
        site.fleet.descendants()
        site.stores.postgres.kill()
        drains = site.fleet.said.count(DRAIN)
        site.fleet.send(signal.SIGTERM)
        await until(lambda: site.fleet.said.count(DRAIN) == drains + 2)
        await site.let_go()
        await over(calls)
    assert all(map(complete, calls)), [call.broke or call.last for call in calls]
    assert await site.fleet.ended() == 0
    assert not site.fleet.left()
    site.stores.postgres.start()
    site.start_again()
    rows = await site.settled(key)
    assert {(row["outcome"], row["basis"]) for row in rows} == {("completed", "final")}
    assert {row["completion_tokens"] for row in rows} == {TOKENS}
