"""The primary Redis dies under a fleet with streams; a replica takes over, and the books agree."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import httpx
import pytest
import trio

from tests.integration import fleet as fleets
from tests.integration.calls import SLOTS, bearer, books_agree, chat, command, office, spread
from tests.sentinels import FAILOVER, Ensemble, ensemble

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

GAP = 0.05  # seconds between two tokens
TOKENS = 40
LEASE = 2.0
BUDGET = 10_000_000


@dataclass
class Site:
    """A fleet whose Redis has a replica and sentinels."""

    redises: Ensemble
    sim: fleets.Ollama
    fleet: fleets.Fleet

    @property
    def stores(self) -> tuple[str, str]:
        """The addresses of both stores."""
        return self.fleet.database_url, self.fleet.redis_url

    async def ask(self, key: Any) -> httpx.Response:
        """Make one whole call, and give its answer."""
        async with httpx.AsyncClient(base_url=self.fleet.base_url, timeout=60) as client:
            body = chat(stream=False, model="qwen3:8b", options={"num_predict": 5})
            return await client.post("/api/chat", json=body, headers=bearer(key))

    async def outage(self, key: Any, limit: float) -> tuple[int, float]:
        """Ask until there is an answer after a refusal; return refusals, and seconds until then."""
        refused, began = 0, time.monotonic()
        with trio.fail_after(limit):
            while True:
                answer = await self.ask(key)
                if answer.status_code == 200 and refused:
                    return refused, time.monotonic() - began
                if answer.status_code != 200:
                    assert answer.status_code == 503, answer.text
                    assert int(answer.headers["retry-after"]) >= 1
                    refused += 1
                await trio.sleep(0.05)


@pytest.fixture
async def site(tmp_path, database) -> AsyncIterator[Site]:
    async with ensemble(tmp_path) as redises:
        settings = {"hold_lease": LEASE, "sweep_interval": 0.5, "backend_slots": SLOTS}
        with (
            fleets.ollama(tmp_path) as sim,
            fleets.fleet("serve", tmp_path, (database, redises.url), sim.url, **settings) as fleet,
        ):
            yield Site(redises, sim, fleet)


async def test_a_failover_is_a_short_refusal_and_no_more(site):
    """Streams go on, new calls get 503 until it is over, and every token is charged."""
    async with office(site.fleet.database_url) as desk:
        key = await desk.key("acme", budget=BUDGET, budget_period="total")
    await site.sim.play({"model": "llama3.2", "token_gap": GAP, "tokens": TOKENS, "held": True})
    assert (await site.ask(key)).status_code == 200
    async with trio.open_nursery() as nursery:
        calls = await spread(nursery, site.fleet, key)
        before = site.redises.primary()
        site.redises.kill(before)
        refused, took = await site.outage(key, FAILOVER)
        assert refused > 0
        assert not any(call.ended.is_set() for call in calls)
        assert await site.redises.replaced(before) in set(site.redises.data) - {before}
        await site.sim.play()
        print(f"{refused} refusals in {took:.1f} s")
    for call in calls:
        assert call.broke is None
        assert call.lines[-1] == "data: [DONE]" or call.last["done"] is True
    await books_agree(site.stores)
    async with office(site.fleet.database_url) as desk:
        rows = await desk.rows(key)
        (booked,) = await desk.postgres.fetch(
            "SELECT sum(charged) AS sum FROM gateway.spend WHERE scope LIKE 't:%'"
        )
    done = [row for row in rows if row["outcome"] != "refused"]
    assert {(row["outcome"], row["basis"]) for row in done} == {("completed", "final")}
    assert len(done) == (await site.sim.state(open=0))["started"]
    assert len({row["request_id"] for row in rows}) == len(rows)
    spent = sum(row["charged_tokens"] for row in rows)
    assert booked["sum"] == spent
    # what the counters say to a caller, who holds no more than the call at hand
    last = await site.ask(key)
    async with office(site.fleet.database_url) as desk:
        held = (await desk.settled(key, len(rows) + 1))[-1]["held_tokens"]
    assert int(last.headers["x-budget-remaining-tokens"]) == BUDGET - spent - held
    names = {"DATABASE_URL": site.fleet.database_url, "REDIS_URL": site.redises.url}
    await books_agree(site.stores)
    code, verified = await command("ledger", "verify", **names)
    assert (code, verified["ok"], verified["holds_open"]) == (0, True, 0)
    # two sums of the day, and both counters of the budget: they are warm, and trusted
    assert verified["checked"] >= 4
