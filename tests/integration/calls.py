"""What tests do with a fleet: make keys, hold streams, read rows, compare the books."""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass
from typing import Any

import httpx
import trio

from tests.integration.fleet import ROOT, STOP_LIMIT, TICK, Fleet, script, until
from trio_gateway.clients.bridge import open_bridge
from trio_gateway.clients.postgres import Postgres, open_postgres
from trio_gateway.clients.redis import Redis
from trio_gateway.pipeline.verify import verify
from trio_gateway.services.accounts import Accounts
from trio_gateway.services.keyring import Keyring
from trio_gateway.services.tenant_rows import read_installation_secret

FEW = 20  # streams
SLOTS = 250  # of each worker


@dataclass(frozen=True)
class Office:
    """Tenants, keys and raw SQL of one database."""

    postgres: Postgres
    accounts: Accounts
    keyring: Keyring

    async def key(self, tenant: str, values: Any = None, **limits: Any) -> Any:
        """Make a tenant with every model and the limits, and a key of it."""
        await self.accounts.create(tenant, {"all_models": True} | limits)
        return await self.keyring.issue(tenant, values or {})

    async def rows(self, key: Any) -> list[dict[str, Any]]:
        """Return a key's ledger, oldest first."""
        query = "SELECT * FROM gateway.ledger WHERE key_id = $1 ORDER BY started_at"
        return [dict(row) for row in await self.postgres.fetch(query, key["id"])]

    async def settled(
        self, key: Any, count: int, limit: float = STOP_LIMIT
    ) -> list[dict[str, Any]]:
        """Wait until a key has that many rows, and return them."""
        with trio.fail_after(limit):
            while len(rows := await self.rows(key)) < count:  # noqa: ASYNC110
                await trio.sleep(TICK)
        assert len(rows) == count
        return rows


@contextlib.asynccontextmanager
async def office(database_url: str) -> AsyncIterator[Office]:
    """Open a way into the database."""
    async with open_bridge() as bridge, open_postgres(bridge, database_url, size=2) as postgres:
        secret = await read_installation_secret(postgres)
        yield Office(postgres, Accounts(postgres, "test"), Keyring(postgres, secret, "test"))


def bearer(key: Any) -> dict[str, str]:
    """Return the header that presents a key."""
    return {"authorization": f"Bearer {key['key']}"}


def chat(text: str = "one two three", **more: Any) -> dict[str, Any]:
    """Return a chat request."""
    return {"model": "llama3.2", "messages": [{"role": "user", "content": text}]} | more


class Streaming:
    """A streaming call in a task of its own: what came of it, and when it ended."""

    def __init__(self, base_url: str, key: Any, path: str, body: Any) -> None:
        self.request = (base_url, key, path, body)
        self.began = trio.Event()
        self.ended = trio.Event()
        self.status = 0
        self.lines: list[str] = []
        self.broke: Exception | None = None
        self.scope = trio.CancelScope()
        self.ended_at = 0.0

    @property
    def last(self) -> Any:
        """The last line, as JSON."""
        return json.loads(self.lines[-1].removeprefix("data: "))

    async def run(self) -> None:
        """Read to the end, or until `scope` is cancelled."""
        base_url, key, path, body = self.request
        try:
            with self.scope:
                async with (
                    httpx.AsyncClient(base_url=base_url, timeout=600) as client,
                    client.stream("POST", path, json=body, headers=bearer(key)) as answer,
                ):
                    self.status = answer.status_code
                    async for line in answer.aiter_lines():
                        if line:
                            self.lines.append(line)
                            self.began.set()
        except httpx.HTTPError as error:
            self.broke = error
        finally:
            self.ended_at = time.monotonic()
            self.began.set()
            self.ended.set()


async def stream(
    nursery: trio.Nursery, base_url: str, key: Any, path: str = "/api/chat", **more: Any
) -> Streaming:
    """Begin a stream in the nursery, and return it with its first line there."""
    call = Streaming(base_url, key, path, chat(stream=True, **more))
    nursery.start_soon(call.run)
    with trio.fail_after(STOP_LIMIT):
        await call.began.wait()
    assert call.status == 200, (call.status, call.lines, call.broke)
    return call


async def spread(
    nursery: trio.Nursery, running: Fleet, key: Any, least: int = 1, most: int = 120
) -> list[Streaming]:
    """Begin streams until each of the two workers carries at least so many.

    After the first few they come slowly, as a worker that has just been started is not there yet.
    One worker may have to take all but one: its slots (SLOTS) must be as many.
    """
    calls: list[Streaming] = []
    while True:
        loads = running.loads()
        if len(loads) == 2 and min(loads.values()) >= least:
            return calls
        assert len(calls) < most, loads
        path = "/v1/chat/completions" if len(calls) % 2 else "/api/chat"
        calls.append(await stream(nursery, running.base_url, key, path))
        if len(calls) > FEW:
            await trio.sleep(0.5)


async def on_one_worker(
    nursery: trio.Nursery, running: Fleet, key: Any, count: int, *, most: int = 80, **more: Any
) -> tuple[int, list[Streaming]]:
    """Begin streams until one worker, the first that takes one, carries so many; drop the rest.

    Returns its process id and its streams. Nothing else may be connected.
    """
    chosen: int | None = None
    calls: list[Streaming] = []
    for _ in range(most):
        before = running.loads()
        call = await stream(nursery, running.base_url, key, **more)
        after = running.loads()
        taker = next(pid for pid, load in after.items() if load > before.get(pid, 0))
        chosen = chosen or taker
        if taker == chosen:
            calls.append(call)
            if len(calls) == count:
                return chosen, calls
        else:
            call.scope.cancel()
            await until(lambda: running.loads() == before)  # noqa: B023 - over before the next
    raise AssertionError(f"one worker took {len(calls)} of {most} streams")


async def command(*words: str, **environ: str) -> Any:
    """Run the command line as a process, and return its exit code and its JSON answer."""
    done = await trio.run_process(
        [script("trio-gateway"), *words, "--json"],
        env={**os.environ, **environ},
        cwd=ROOT,
        check=False,
        capture_stdout=True,
        capture_stderr=True,
    )
    assert done.stdout, done.stderr.decode()
    return done.returncode, json.loads(done.stdout)


async def books_agree(stores: Iterable[str]) -> None:
    """Wait until no hold is open; whenever one looks, the books must agree."""
    database_url, redis_url = stores
    async with (
        open_bridge() as bridge,
        open_postgres(bridge, database_url, size=1) as postgres,
        trio.open_nursery() as nursery,
    ):
        redis = Redis(redis_url, {})
        await nursery.start(redis.run)
        with trio.fail_after(STOP_LIMIT):
            while True:
                found = await verify(postgres, redis)
                assert found["ok"], found
                if not found["holds_open"]:
                    break
                await trio.sleep(TICK)
        nursery.cancel_scope.cancel()
