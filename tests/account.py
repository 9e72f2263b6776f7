"""The services that keep the account, without HTTP: one `Worker` is one worker's share of them."""

from __future__ import annotations

import contextlib
import itertools
import uuid
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import redis as sync_redis
import trio

from tests.stores import TestStores, fresh_database
from trio_gateway.clients.bridge import Bridge, open_bridge
from trio_gateway.clients.postgres import Postgres, open_postgres
from trio_gateway.clients.redis import Redis
from trio_gateway.core.domain import ApiKey, Basis, LedgerRow, Limits, Outcome, Principal, Tenant
from trio_gateway.core.tokens import charge
from trio_gateway.services.ledger.ledger import Ledger
from trio_gateway.services.quota.holds import Hold
from trio_gateway.services.quota.hydrate import Hydrator
from trio_gateway.services.quota.keys import call_keys, scripts, tenant_keys
from trio_gateway.services.quota.quota import Ask, Quota
from trio_gateway.services.quota.renewal import Renewals
from trio_gateway.services.quota.sweep import Sweeper

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

_numbers = itertools.count(1)
MINUTE_US = 60_000_000


def caller(tenant: Limits | None = None, key: Limits | None = None, **known: str) -> Principal:
    """Make a tenant nobody has seen, and a key of it; `known` may name `tenant_id` and `key_id`."""
    tenant_id = known.get("tenant_id") or f"tn_{uuid.uuid4().hex}"
    key_id = known.get("key_id") or f"key_{uuid.uuid4().hex}"
    return Principal(
        Tenant(tenant_id, "acme", tenant or Limits(), all_models=True),
        ApiKey(key_id, "public", tenant_id, "", key or Limits()),
    )


def ask(
    principal: Principal,
    prompt: int = 10,
    output: int = 20,
    *,
    milli: int = 1000,
    dispatched: bool = True,
    share: int = 1000,
) -> Ask:
    """Ask for one call under a request id of its own."""
    return Ask(
        request_id=f"req_{next(_numbers)}_{uuid.uuid4().hex[:12]}",
        principal=principal,
        estimate=prompt,
        output=output,
        milli_weight=milli,
        dispatched=dispatched,
        opaque={
            "endpoint": "/api/chat",
            "model": "llama3.2:latest",
            "estimate": prompt,
            "milli": milli,
            "batch_id": None,
        },
        share=share,
    )


def row_of(hold: Hold, charged: int | None = None, **changes: Any) -> LedgerRow:
    """Write the row of a call that ended well, charged what it held unless told otherwise."""
    charged = hold.cost if charged is None else charged
    values: dict[str, Any] = {
        "request_id": hold.request_id,
        "tenant_id": hold.tenant_id,
        "key_id": hold.key_id,
        "endpoint": "/api/chat",
        "model": "llama3.2:latest",
        "status_code": 200,
        "outcome": Outcome.COMPLETED,
        "basis": Basis.FINAL,
        "prompt_tokens": charged,
        "completion_tokens": 0,
        "charged_tokens": charged,
        "held_tokens": hold.cost,
        "backend": "http://127.0.0.1:1",
        "started_us": hold.started_us,
        "ttft_ms": 1.0,
        "duration_ms": 2.0,
    }
    return LedgerRow(**(values | changes))


def past_row(principal: Principal, charged: int, started_us: int) -> LedgerRow:
    """Write the row of a call of some other day."""
    hold = Hold(
        request_id=f"req_{uuid.uuid4().hex}",
        tenant_id=principal.tenant.id,
        key_id=principal.key.id,
        started_us=started_us,
        ceiling=0,
        cost=charged,
        text="",
        phase="final",
        renewed_at=0,
    )
    return row_of(hold)


@dataclass
class Worker:
    """One worker's services over shared stores."""

    bridge: Bridge
    redis: Redis
    postgres: Postgres
    ledger: Ledger
    hydrator: Hydrator
    quota: Quota
    renewals: Renewals
    sweeper: Sweeper
    nursery: trio.Nursery

    async def end(self, hold: Hold, charged: int | None = None, **changes: Any) -> LedgerRow:
        """Store a call's row, then settle its hold; return the row that was stored."""
        (stored,) = await self.ledger.write([row_of(hold, charged, **changes)])
        await self.quota.settle([stored])
        return stored

    def crash(self, hold: Hold) -> None:
        """Forget a hold, as a worker does that dies."""
        del self.quota.live[hold.request_id]

    async def counters(self, principal: Principal) -> dict[str, int]:
        """Return a tenant's counters by their names in Redis."""
        flat = await self.redis.command("HGETALL", tenant_keys(principal.tenant.id)[1])
        names = [name.decode() for name in flat[::2]]
        return dict(zip(names, map(int, flat[1::2]), strict=True))

    async def holds(self, principal: Principal) -> set[str]:
        """Return the request ids of a tenant's open holds."""
        found = await self.redis.command("HKEYS", tenant_keys(principal.tenant.id)[2])
        return {name.decode() for name in found}

    async def warm(self, principal: Principal) -> bool:
        """Whether a tenant's counters are trusted."""
        keys = tenant_keys(principal.tenant.id)
        known = await self.redis.command("HGET", keys[0], "warm")
        return bool(known == self.redis.run_id.encode())

    async def now_us(self) -> int:
        """Return the instant by Redis."""
        seconds, micros = await self.redis.command("TIME")
        return int(seconds) * 1_000_000 + int(micros)

    async def rows(self, principal: Principal) -> list[dict[str, Any]]:
        """Return a tenant's ledger rows, oldest first."""
        query = "SELECT * FROM gateway.ledger WHERE tenant_id = $1 ORDER BY started_at"
        return [dict(row) for row in await self.postgres.fetch(query, principal.tenant.id)]

    async def connected(self, *, wanted: bool = True) -> None:
        """Wait until Redis is connected, or is not."""
        await until(lambda: self.redis.connected is wanted)

    async def age(self) -> None:
        """Let Redis look as if it had been up for long, so that nothing waits."""
        await self.redis.command("SET", "tg:epoch", f"{self.redis.run_id}|0")


async def until(condition: Callable[[], bool]) -> None:
    """Wait for something that has no event of its own."""
    while not condition():  # noqa: ASYNC110
        await trio.sleep(0.005)


@contextlib.asynccontextmanager
async def open_worker(
    database_url: str,
    redis_url: str,
    *,
    lease: float = 15,
    min_output: int = 16,
    in_flight: int = 1000,
    window: float = 60,
    renewal: float = 1,
    aged: bool = True,
    limit: float = 120,
) -> AsyncIterator[Worker]:
    """Run the account's services of one worker; renewals and sweeps go by hand."""
    async with (
        open_bridge() as bridge,
        open_postgres(bridge, database_url, size=4) as postgres,
        trio.open_nursery() as nursery,
    ):
        redis = Redis(redis_url, scripts())
        with trio.fail_after(60):
            await nursery.start(redis.run)
        hydrator = Hydrator(redis, postgres, renewal)
        quota = Quota(
            redis, hydrator, lease=lease, min_output=min_output, in_flight=in_flight, window=window
        )
        ledger = Ledger(postgres)
        worker = Worker(
            bridge,
            redis,
            postgres,
            ledger,
            hydrator,
            quota,
            Renewals(redis, quota, ledger, renewal),
            Sweeper(redis, quota, ledger, interval=0.05, lease=lease, renewal=0.05),
            nursery,
        )
        if aged:
            await worker.age()
        with trio.fail_after(limit):
            yield worker
        nursery.cancel_scope.cancel()


@contextlib.contextmanager
def one_database(stores: Any) -> Iterator[str]:
    """Lend a database to a whole module, whose tests each bring their own tenants."""
    with fresh_database(TestStores(stores.database_url, stores.redis_url)) as url:
        yield url


def empty(redis_url: str) -> None:
    """Lose everything that Redis holds."""
    with contextlib.closing(sync_redis.Redis.from_url(redis_url)) as client:
        client.flushall()


def charged(prompt: int, output: int, milli: int = 1000) -> int:
    """Return what so many tokens cost, in units."""
    return charge(prompt + output, milli)


def window_sets(principal: Principal) -> list[str]:
    """Name the windows of a caller in Redis that exist where its limits set them."""
    names = call_keys(principal.tenant.id, principal.key.id)[5:]
    tenant, key = principal.tenant.limits, principal.key.limits
    limits = (
        tenant.requests_per_minute,
        tenant.tokens_per_minute,
        key.requests_per_minute,
        key.tokens_per_minute,
    )
    return [name for name, limit in zip(names, limits, strict=True) if limit is not None]
