"""A tenant's account as Redis has it at one instant, for those who compare the books."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

from trio_gateway.services.quota.holds import parse_found
from trio_gateway.services.quota.keys import META_PATTERN, scripts, tenant_keys, tenant_of

if TYPE_CHECKING:
    from trio_gateway.clients.redis import Redis

PAGE = 500
SCRIPT = scripts()["snapshot"]


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Counters by (scope, period label), where the scope is `t` or `k:<key id>`; in units.

    `held` has what the open holds add up to, `counted_held` what the counters say.
    """

    warm: bool
    at_us: int
    open_holds: tuple[str, ...]
    spent: dict[tuple[str, str], int]
    counted_held: dict[tuple[str, str], int]
    held: Counter[tuple[str, str]]


async def tenants_with_account(redis: Redis) -> set[str]:
    """Name every tenant of which Redis knows anything. Raises StoreUnavailable."""
    found: set[str] = set()
    cursor = 0
    while True:
        reply, keys = await redis.command("SCAN", cursor, "MATCH", META_PATTERN, "COUNT", PAGE)
        found.update(tenant_of(key.decode()) for key in keys)
        cursor = int(reply)
        if not cursor:
            return found


async def take_snapshot(redis: Redis, tenant_id: str) -> Snapshot:
    """Read a tenant's account in one step. Raises StoreUnavailable."""
    keys = tenant_keys(tenant_id)
    # By its text: whoever compares the books may not have loaded the scripts.
    warm, at_us, counters, holds = await redis.command(
        "EVAL", SCRIPT, len(keys), *keys, redis.run_id
    )
    spent: dict[tuple[str, str], int] = {}
    counted_held: dict[tuple[str, str], int] = {}
    for name, units in zip(counters[::2], counters[1::2], strict=True):
        kind, _, rest = name.decode().partition("|")
        scope, _, label = rest.rpartition("|")
        (spent if kind == "s" else counted_held)[(scope, label)] = int(units)
    held: Counter[tuple[str, str]] = Counter()
    open_holds = []
    for request_id, text in zip(holds[::2], holds[1::2], strict=True):
        found = parse_found(tenant_id, request_id.decode(), text.decode(), "")
        open_holds.append(found.request_id)
        for scope in ("t", f"k:{found.key_id}"):
            for label in (found.day, found.day[:7], "total"):
                held[(scope, label)] += found.cost
    return Snapshot(bool(warm), at_us, tuple(open_holds), spent, counted_held, held)
