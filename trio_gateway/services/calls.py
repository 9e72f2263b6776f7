"""Calls under way on every machine, as their holds tell, and the way to end one."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from trio_gateway.services.account_rows import NotFound, printable, write_event
from trio_gateway.services.quota.holds import FINAL, parse_found
from trio_gateway.services.quota.keys import INDEX, tenant_keys

if TYPE_CHECKING:
    from collections.abc import Iterator

    from trio_gateway.clients.postgres import Connection, Postgres
    from trio_gateway.clients.redis import Redis

CHANNEL = "gateway_changes"
MOST = 2000  # calls in one listing
CHUNK = 500  # tenants asked about at once
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
        return await self._named(await self._open(tenant_id))

    async def count(self) -> int:
        """Return how many holds there are."""
        total = 0
        for names in _chunks(await self._tenants()):
            sent = [self._redis.send("HLEN", tenant_keys(name)[2]) for name in names]
            total += sum([await self._redis.answer(pending) for pending in sent])
        return total

    async def cut(self, request_id: str, actor: str) -> dict[str, Any]:
        """End one call wherever it runs; returns what it was."""
        found = await self._find(request_id)
        if found is None:
            raise NotFound(f"there is no call {printable(request_id)} under way", "request_id")
        (call,) = await self._named([found])
        await self._postgres.transact(_cut, request_id, actor, call)
        return call

    async def _named(self, calls: list[OpenCall]) -> list[dict[str, Any]]:
        rows = await self._postgres.fetch(_NAMES, list({call.key_id for call in calls}))
        names = {row["id"]: (row["tenant"], row["name"]) for row in rows}
        listed = []
        for call in calls:
            tenant, key = names.get(call.key_id, (None, None))
            fields = {name: getattr(call, name) for name in OpenCall.__slots__}
            listed.append({**fields, "tenant": tenant, "key": key})
        return listed

    async def _open(self, tenant_id: str | None) -> list[OpenCall]:
        calls: list[OpenCall] = []
        for names in _chunks([tenant_id] if tenant_id is not None else await self._tenants()):
            for name, flat, given in await self._ask(names, "HGETALL"):
                leases = dict(zip(given[::2], given[1::2], strict=True))
                for rid, text in zip(flat[::2], flat[1::2], strict=True):
                    call = _call(name, rid.decode(), text, leases.get(rid))
                    if call is not None:
                        calls.append(call)
            calls.sort(key=lambda call: (call.started_at, call.request_id))
            del calls[MOST:]
        return calls

    async def _find(self, request_id: str) -> OpenCall | None:
        for names in _chunks(await self._tenants()):
            for name, text, lease in await self._ask(names, "HGET", request_id):
                if text is not None:
                    return _call(name, request_id, text, lease)
        return None

    async def _ask(self, names: list[str], command: str, *args: str) -> list[tuple[str, Any, Any]]:
        """Send one command for the holds and one for the leases of each tenant, all at once."""
        sent = [
            (name, [self._redis.send(command, key, *args) for key in tenant_keys(name)[2:4]])
            for name in names
        ]
        return [
            (name, await self._redis.answer(holds), await self._redis.answer(leases))
            for name, (holds, leases) in sent
        ]

    async def _tenants(self) -> list[str]:
        return [name.decode() for name in await self._redis.command("ZRANGE", INDEX, 0, -1)]


def _chunks(names: list[str]) -> Iterator[list[str]]:
    """Cut names into lists that are short enough to be asked about at once."""
    for at in range(0, len(names), CHUNK):
        yield names[at : at + CHUNK]


def _call(tenant_id: str, request_id: str, text: bytes, lease: bytes | None) -> OpenCall | None:
    """Read one hold and its lease; None for a call that only waits for its account to be closed."""
    found = parse_found(tenant_id, request_id, text.decode(), (lease or b"").decode())
    if found.phase == FINAL:
        return None
    return OpenCall(
        request_id=request_id,
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


async def _cut(connection: Connection, request_id: str, actor: str, call: dict[str, Any]) -> None:
    kept = {name: call[name] for name in ("tenant_id", "key_id", "model", "endpoint")}
    await write_event(connection, (actor, "call.cut", request_id), kept, None)
    await connection.execute("SELECT pg_notify($1, $2)", CHANNEL, f"cut:{request_id}")
