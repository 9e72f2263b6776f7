"""Hydrates: assign a cold tenant's counters from PostgreSQL, the truth.

The spent sums are read in one snapshot, without the rows whose holds are still open (a settle
will add those); they are assigned only if nothing moved since the first step.
"""

from __future__ import annotations

import contextlib
from datetime import UTC, date, datetime
from typing import TYPE_CHECKING

import trio

from trio_gateway.core.errors import StoreUnavailable
from trio_gateway.services.quota.keys import EPOCH, tenant_keys

if TYPE_CHECKING:
    from collections.abc import Sequence

    from trio_gateway.clients.postgres import Postgres
    from trio_gateway.clients.redis import Redis

ATTEMPTS = 20
FOLLOW = 0.5  # seconds
GRACE = 0.5  # seconds beyond one renewal interval before a new epoch is trusted

SPENT = """
SELECT scope, first, (
    SELECT coalesce(sum(charged), 0) FROM gateway.spend AS s
    WHERE s.scope = w.spend_scope AND s.period_start >= w.first
) - (
    SELECT coalesce(sum(charged_tokens), 0) FROM gateway.ledger AS l
    WHERE l.request_id = ANY($4) AND l.tenant_id = $5
      AND (w.scope = 't' OR l.key_id = substr(w.scope, 3))
      AND (l.started_at AT TIME ZONE 'UTC')::date >= w.first
) AS spent
FROM unnest($1::text[], $2::text[], $3::date[]) AS w(scope, spend_scope, first)
"""


class Hydrator:
    """Makes tenants warm; concurrent hydrates of one tenant are harmless, and share work here."""

    def __init__(self, redis: Redis, postgres: Postgres, renewal: float) -> None:
        """`renewal` is the interval, in seconds, at which every worker renews its holds."""
        self._redis = redis
        self._postgres = postgres
        self._wait_us = int((renewal + GRACE) * 1_000_000)
        self._locks: dict[str, trio.Lock] = {}
        self._trusted = ""  # the run of Redis whose epoch is old enough

    @property
    def trusted(self) -> bool:
        """Whether Redis answers, and not in a life that it has just begun."""
        return self._redis.connected and self._redis.run_id == self._trusted

    async def follow(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Find out, for ever, whether a Redis that came back can be trusted."""
        task_status.started()
        while True:
            if self._redis.connected and not self.trusted:
                with contextlib.suppress(StoreUnavailable):
                    await trio.sleep(await self.settled())
                    continue
            await trio.sleep(FOLLOW)

    async def settled(self) -> float:
        """Return how many seconds remain until live holds are surely back; 0 when they are."""
        run_id = self._redis.run_id
        since, now = await self._redis.script("epoch", [EPOCH], [run_id])
        remaining = max(0.0, float(since + self._wait_us - now) / 1_000_000)
        self._trusted = "" if remaining else run_id
        return remaining

    async def warm(self, tenant_id: str, needed: Sequence[tuple[str, str]]) -> None:
        """Assign the counters `needed` (scope, period kind) and those in use.

        Raises StoreUnavailable while the epoch is young, or where the stores do not answer.
        """
        lock = self._locks.setdefault(tenant_id, trio.Lock())
        try:
            async with lock:
                for attempt in range(ATTEMPTS):
                    if await self._attempt(tenant_id, needed):
                        return
                    await trio.sleep(0.002 * attempt)
        finally:
            if not lock.statistics().tasks_waiting:
                self._locks.pop(tenant_id, None)
        raise StoreUnavailable(retry_after=1)

    async def _attempt(self, tenant_id: str, needed: Sequence[tuple[str, str]]) -> bool:
        keys = tenant_keys(tenant_id)
        run_id = self._redis.run_id
        pairs = [word for pair in needed for word in pair]
        begun = await self._redis.script("hydrate_begin", keys, [run_id, *pairs])
        if begun is None:
            return True
        # Not before the first step: data lost in between would go unnoticed, and what is lost
        # from here on takes the generation along.
        if remaining := await self.settled():
            raise StoreUnavailable(retry_after=max(1.0, remaining))
        gen, now_us, open_holds, fields = begun
        today = datetime.fromtimestamp(now_us / 1_000_000, UTC).date()
        wanted = {(scope, _label(kind, today)): _first(kind, today) for scope, kind in needed}
        for name in fields:
            scope, label = name.decode()[2:].rsplit("|", 1)
            kind = _kind(label)
            if label == _label(kind, today):
                wanted[(scope, label)] = _first(kind, today)
        spent = await self._spent(tenant_id, wanted, [rid.decode() for rid in open_holds])
        args: list[str | int] = [run_id, gen.decode()]
        for scope, label in wanted:
            args += [scope, label, spent[(scope, wanted[(scope, label)])]]
        return bool(await self._redis.script("hydrate_end", keys, args))

    async def _spent(
        self, tenant_id: str, wanted: dict[tuple[str, str], date], open_holds: list[str]
    ) -> dict[tuple[str, date], int]:
        if not wanted:
            return {}
        scopes = [scope for scope, _ in wanted]
        rows = await self._postgres.fetch(
            SPENT,
            scopes,
            [f"t:{tenant_id}" if scope == "t" else scope for scope in scopes],
            list(wanted.values()),
            open_holds,
            tenant_id,
        )
        return {(row["scope"], row["first"]): int(row["spent"]) for row in rows}


def _label(kind: str, today: date) -> str:
    return {"day": today.isoformat(), "month": today.isoformat()[:7]}.get(kind, "total")


def _kind(label: str) -> str:
    return {10: "day", 7: "month"}.get(len(label), "total")


def _first(kind: str, today: date) -> date:
    return {"day": today, "month": today.replace(day=1)}.get(kind, date(1970, 1, 1))
