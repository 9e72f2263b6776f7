"""An installation that has been in use for a month: what screenshots show."""

from __future__ import annotations

import contextlib
import math
import random
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import orjson
import trio

from tests.world import World
from trio_gateway.core.domain import Basis, LedgerRow, Outcome
from trio_gateway.services.ledger.ledger import Ledger
from trio_gateway.simulator.script import Script

MODELS = ("llama3.2:latest", "qwen3:8b", "gpt-oss:20b", "llava:7b", "nomic-embed-text:latest")
# Tenants: their share of the traffic, what they like, and what they are limited to.
TENANTS: dict[str, tuple[float, tuple[int, ...], dict[str, Any]]] = {
    "docs-search": (5, (1, 0, 0, 0, 9), {"requests_per_minute": 600}),
    "support-desk": (4, (6, 3, 1, 1, 0), {"tokens_per_minute": 200_000}),
    "code-review": (3, (0, 4, 6, 0, 0), {"weight_share": 3}),
    "research": (2, (1, 2, 5, 2, 1), {}),
    "marketing": (1, (5, 1, 0, 3, 0), {"max_output_tokens": 2048}),
}
KEYS = ("production", "staging", "notebook")
DAYS = 30
ROWS = 7000
CHUNK = 500
OUTCOMES = (
    (Outcome.COMPLETED, Basis.FINAL, 200, 94),
    (Outcome.ABORTED, Basis.PARTIAL, 200, 3),
    (Outcome.CUT, Basis.PARTIAL, 200, 1),
    (Outcome.UPSTREAM_ERROR, Basis.ESTIMATED, 502, 1),
    (Outcome.TIMEOUT, Basis.PARTIAL, 504, 1),
)


async def fill(world: World, rows: int = ROWS) -> dict[str, Any]:
    """Make tenants, keys and a month of calls; returns a key of each tenant by its name."""
    await world.models.set("gpt-oss:20b", {"milli_weight": 2500}, "model.weight")
    await world.models.set("llava:7b", {"num_ctx": 8192}, "model.pin")
    keys: dict[str, Any] = {}
    everyone: list[Any] = []
    for name, (_, _, values) in TENANTS.items():
        await world.accounts.create(name, {"all_models": True} | values)
        made = [await world.keyring.issue(name, {"name": each}) for each in KEYS]
        keys[name] = made[0]
        everyone.append(made)
    await world.keyring.revoke(everyone[3][2]["id"], reason="laptop lost")
    calls = _month(everyone, rows, random.Random(7))
    ledger = Ledger(world.postgres)
    for start in range(0, len(calls), CHUNK):
        await ledger.write(calls[start : start + CHUNK])
    for name, period, share in (("marketing", "month", 0.87), ("research", "day", 1.0)):
        tenant_id = keys[name]["tenant_id"]
        row = next(row for row in reversed(calls) if row.tenant_id == tenant_id)
        await _near_end(world, row, name, period, share)
    return keys


@contextlib.asynccontextmanager
async def busy(world: World, keys: dict[str, Any], calls: int = 6) -> AsyncIterator[str]:
    """Hold some calls and a batch under way; yields the batch's id."""
    world.sim.play(Script(path="/api/embed", head_delay=0.6), Script(tokens=400, token_gap=0.4))
    async with trio.open_nursery() as nursery:
        names = [name for name in keys if name != "research"]
        for number in range(calls):
            name = names[number % len(names)]
            nursery.start_soon(_hold, world, keys[name], MODELS[number % 3])
        batch_id = await _batch(world, keys["docs-search"])
        with trio.fail_after(60):
            while len(world.gateway.live) < calls:  # noqa: ASYNC110
                await trio.sleep(0.05)
        yield batch_id
        nursery.cancel_scope.cancel()


def _month(everyone: list[list[Any]], count: int, dice: random.Random) -> list[LedgerRow]:
    now = datetime.now(UTC)
    shares = [share for share, _, _ in TENANTS.values()]
    tastes = [taste for _, taste, _ in TENANTS.values()]
    rows = []
    for number in range(count):
        at = now - timedelta(seconds=_ago(dice))
        place = dice.choices(range(len(shares)), shares)[0]
        model = dice.choices(MODELS, tastes[place])[0]
        key = dice.choices(everyone[place], (6, 3, 1))[0]
        outcome, basis, status, _ = dice.choices(OUTCOMES, [each[3] for each in OUTCOMES])[0]
        prompt = int(dice.lognormvariate(6, 0.9))
        output = 0 if "embed" in model else int(dice.lognormvariate(5.2, 0.8))
        charged = math.ceil((prompt + output) * (2.5 if model == "gpt-oss:20b" else 1))
        wait = dice.lognormvariate(5.4, 0.7)
        rows.append(
            LedgerRow(
                request_id=f"req_{number:024d}",
                tenant_id=key["tenant_id"],
                key_id=key["id"],
                endpoint="/v1/embeddings" if "embed" in model else "/v1/chat/completions",
                model=model,
                status_code=status,
                outcome=outcome,
                basis=basis,
                prompt_tokens=prompt,
                completion_tokens=output,
                charged_tokens=charged,
                held_tokens=charged,
                backend="gpu-1:11434",
                started_us=int(at.timestamp() * 1_000_000),
                ttft_ms=wait if output else None,
                duration_ms=wait + output * 20,
            )
        )
    return sorted(rows, key=lambda row: row.started_us)


def _ago(dice: random.Random) -> float:
    """Pick how many seconds ago a call was: busy by day, quiet at night and on Sundays."""
    while True:
        ago = dice.uniform(0, DAYS * 86_400) * (0.6 if dice.random() < 0.3 else 1)
        at = datetime.now(UTC) - timedelta(seconds=ago)
        daytime = 0.12 + 0.88 * max(0.0, math.sin((at.hour - 5) / 24 * math.tau / 1.2))
        if dice.random() < daytime * (0.35 if at.weekday() > 4 else 1):
            return ago


async def _near_end(world: World, row: LedgerRow, name: str, period: str, share: float) -> None:
    """Give a tenant the budget of which it has spent this share, and let it be noticed."""
    await world.accounts.update(name, {"budget": 10**12, "budget_period": period})
    spent = (await world.accounts.show(name))["spent"]
    await world.accounts.update(name, {"budget": max(1, int((spent + row.charged_tokens) / share))})
    # Notices are written with ledger rows.
    await Ledger(world.postgres).write([replace(row, request_id=f"req_{name}")])


async def _hold(world: World, key: Any, model: str) -> None:
    body = {"model": model, "stream": True, "max_tokens": 900} | {
        "messages": [{"role": "user", "content": "Explain the tides."}]
    }
    with contextlib.suppress(httpx.HTTPError):
        async with world.client.stream(
            "POST", "/v1/chat/completions", json=body, headers=world.auth(key), timeout=120
        ) as answer:
            async for _ in answer.aiter_bytes():
                pass


async def _batch(world: World, key: Any) -> str:
    """Make a batch whose lines take a while."""
    lines = [
        {
            "custom_id": f"page-{number}",
            "method": "POST",
            "url": "/v1/embeddings",
            "body": {"model": "nomic-embed-text", "input": f"Page {number}"},
        }
        for number in range(400)
    ]
    text = b"".join(orjson.dumps(line) + b"\n" for line in lines)
    file = await world.client.post(
        "/v1/files",
        files={"file": ("pages.jsonl", text)},
        data={"purpose": "batch"},
        headers=world.auth(key),
    )
    wanted = {
        "input_file_id": file.json()["id"],
        "endpoint": "/v1/embeddings",
        "completion_window": "24h",
        "metadata": {"job": "nightly index"},
    }
    batch = await world.client.post("/v1/batches", json=wanted, headers=world.auth(key))
    return str(batch.json()["id"])
