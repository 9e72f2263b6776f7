"""Calls under way on every machine, as their holds tell, and the way to end one."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from trio_gateway.services.account_rows import NotFound, printable, write_event
from trio_gateway.services.quota.holds import FINAL, parse_found
from trio_gateway.services.quota.keys import INDEX, tenant_keys

if TYPE_CHECKING:
    from trio_gateway.clients.postgres import Connection, Postgres
    from trio_gateway.clients.redis import Redis

CHANNEL = "gateway_changes"
MOST = 2000  # calls in one listing
_NAMES = """
SELECT k.id, k.name, t.name AS tenant FROM gateway.api_keys k
JOIN gateway.tenants t ON t.id = k.tenant_id WHERE k.id = ANY($1::text[])
"""


@dataclass(frozen=True, slots=True)
class OpenCall:
    """One admitted call. Tokens are units but `output_tokens`, which is at most a second old."""

    request_id: str
    tenant_id: str
    key_id: str
    model: str
    endpoint: str
    phase: str  # queued or dispatched
    started_at: datetime
    output_tokens: int
    held_tokens: int
    batch_id: str | None
    tenant: str | None = None
    key: str | None = None


class Calls:
    """Errors raised: NotFound, StoreUnavailable."""

    def __init__(self, redis: Redis, postgres: Postgres) -> None:
        """Take Redis for the holds, and PostgreSQL for names and for the word to end a call."""
        self._redis = redis
        self._postgres = postgres

    async def listing(self, tenant_id: str | None = None) -> list[dict[str, Any]]:
        """Return the calls under way, the oldest first, at most MOST; fields as OpenCall."""
        calls = await self._open(tenant_id)
        rows = await self._postgres.fetch(_NAMES, list({call.key_id for call in calls}))
        names = {row["id"]: (row["tenant"], row["name"]) for row in rows}
        listed = []
        for call in calls:
            tenant, key = names.get(call.key_id, (None, None))
            fields = {name: getattr(call, name) for name in OpenCall.__slots__}
            listed.append({**fields, "tenant": tenant, "key": key})
        return listed

    async def count(self) -> int:
        """Return how many holds there are."""
        tenants = await self._redis.command("ZRANGE", INDEX, 0, -1)
        sent = [self._redis.send("HLEN", tenant_keys(name.decode())[2]) for name in tenants]
        return sum([await self._redis.answer(pending) for pending in sent])

    async def cut(self, request_id: str, actor: str) -> dict[str, Any]:
        """End one call wherever it runs; returns what it was."""
        found = [call for call in await self.listing() if call["request_id"] == request_id]
        if not found:
            raise NotFound(f"there is no call {printable(request_id)} under way", "request_id")
        await self._postgres.transact(_cut, request_id, actor, found[0])
        return found[0]

    async def _open(self, tenant_id: str | None) -> list[OpenCall]:
        names = [tenant_id] if tenant_id is not None else await self._tenants()
        sent = [
            (name, self._redis.send("HGETALL", keys[2]), self._redis.send("HGETALL", keys[3]))
            for name, keys in ((name, tenant_keys(name)) for name in names)
        ]
        calls: list[OpenCall] = []
        for name, holds, leases in sent:
            flat = await self._redis.answer(holds)
            given = await self._redis.answer(leases)
            calls += _read(name, flat, dict(zip(given[::2], given[1::2], strict=True)))
        calls.sort(key=lambda call: (call.started_at, call.request_id))
        return calls[:MOST]

    async def _tenants(self) -> list[str]:
        return [name.decode() for name in await self._redis.command("ZRANGE", INDEX, 0, -1)]


def _read(tenant_id: str, flat: list[bytes], leases: dict[bytes, bytes]) -> list[OpenCall]:
    calls = []
    for rid, text in zip(flat[::2], flat[1::2], strict=True):
        lease = leases.get(rid, b"").decode()
        found = parse_found(tenant_id, rid.decode(), text.decode(), lease)
        if found.phase == FINAL:
            continue
        call = OpenCall(
            request_id=found.request_id,
            tenant_id=tenant_id,
            key_id=found.key_id,
            model=found.opaque["model"],
            endpoint=found.opaque["endpoint"],
            phase=found.phase,
            started_at=datetime.fromtimestamp(found.started_us / 1_000_000, UTC),
            output_tokens=found.output,
            held_tokens=found.cost,
            batch_id=found.opaque.get("batch_id"),
        )
        calls.append(call)
    return calls


async def _cut(connection: Connection, request_id: str, actor: str, call: dict[str, Any]) -> None:
    kept = {name: call[name] for name in ("tenant_id", "key_id", "model", "endpoint")}
    await write_event(connection, (actor, "call.cut", request_id), kept, None)
    await connection.execute("SELECT pg_notify($1, $2)", CHANNEL, f"cut:{request_id}")
