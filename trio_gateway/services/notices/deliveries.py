"""Sends what webhooks are to be told, from the rows that PostgreSQL wrote, until each has ended.

Any number of processes may run this. A delivery is claimed for one attempt under a lease; a
process that dies leaves it to whoever comes after the lease, under the same message id. What
was not taken by the receiver is tried again, later and later, and given up in the end.
"""

from __future__ import annotations

import random
import time
from collections import Counter
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import structlog
import trio

from trio_gateway.clients.webhook import Undelivered
from trio_gateway.core.errors import StoreUnavailable
from trio_gateway.services.account_rows import Refused
from trio_gateway.services.notices.addresses import check_url, parse_hosts
from trio_gateway.services.notices.messages import message
from trio_gateway.services.notices.signing import signed

if TYPE_CHECKING:
    from collections.abc import Callable

    from trio_gateway.clients.postgres import Postgres
    from trio_gateway.clients.webhook import WebhookClient

log = structlog.get_logger()

POLL = 2.0  # seconds
AT_ONCE = 8  # attempts under way in one process
EACH = 2  # of one webhook: a slow receiver leaves the others their turns
LEASE = timedelta(seconds=30)  # three times what the longest attempt takes
RECORD_LIMIT = 5.0  # seconds to store an attempt's end, also while being stopped
# Seconds from one attempt to the next, up to a fifth more; after the last it is given up.
PAUSES = (5, 30, 120, 600, 3600, 6 * 3600, 12 * 3600, 24 * 3600)
PATIENCE = 3600.0  # seconds that a receiver may ask for
GONE = 410
TELL = 1000  # notices at once
KEEP = timedelta(days=90)
PRUNE_EVERY = 3600.0  # seconds
PRUNE_AT_ONCE = 5000  # rows

# Webhooks in any order, so that none is always first; of each what has waited longest. Of a budget
# that passed both thresholds at once, the greater waits for the end of the smaller's first attempt.
CLAIM = """
WITH due AS (
    SELECT d.id FROM (
        SELECT id FROM gateway.webhooks WHERE disabled_at IS NULL AND id <> ALL($1::text[])
        ORDER BY random()
    ) w CROSS JOIN LATERAL (
        SELECT id FROM gateway.deliveries d
        WHERE webhook_id = w.id AND state = 'waiting' AND next_at <= now()
            AND NOT EXISTS (
                SELECT FROM gateway.budget_notices n
                JOIN gateway.budget_notices f ON f.scope = n.scope AND f.period = n.period
                    AND f.period_start = n.period_start AND f.threshold < n.threshold
                    AND f.budget = n.budget
                JOIN gateway.deliveries e ON e.notice_id = f.id AND e.webhook_id = w.id
                WHERE n.id = d.notice_id AND e.state = 'waiting'
                    AND e.status_code IS NULL AND e.error IS NULL)
        ORDER BY next_at, id LIMIT $2 FOR UPDATE SKIP LOCKED
    ) d LIMIT $3
), claimed AS (
    UPDATE gateway.deliveries d SET attempts = attempts + 1, next_at = now() + $4
    FROM due WHERE d.id = due.id RETURNING d.*
)
SELECT c.id, c.message_id, c.attempts, c.created_at, c.notice_id, w.id AS webhook_id,
    w.name AS webhook, w.url, w.secret, n.at, n.tenant_id, t.name AS tenant, n.key_id,
    k.name AS key, n.threshold, n.period, n.period_start, n.budget, n.spent
FROM claimed c JOIN gateway.webhooks w ON w.id = c.webhook_id
LEFT JOIN gateway.budget_notices n ON n.id = c.notice_id
LEFT JOIN gateway.tenants t ON t.id = n.tenant_id
LEFT JOIN gateway.api_keys k ON k.id = n.key_id
"""
# An attempt whose lease another has taken over says nothing any more.
_RECORD = """
UPDATE gateway.deliveries SET state = $3, next_at = now() + $4, status_code = $5, error = $6,
    ended_at = CASE WHEN $3 <> 'waiting' THEN now() END
WHERE id = $1 AND attempts = $2 AND state = 'waiting'
"""
_TELL = """
UPDATE gateway.budget_notices SET told = true WHERE id IN (
    SELECT id FROM gateway.budget_notices WHERE NOT told ORDER BY id LIMIT $1
    FOR UPDATE SKIP LOCKED
) RETURNING tenant_id, key_id, threshold, period, budget, spent
"""
# Notices of a period that never ends stay as long as their tenant: they are what keeps the same
# from being noticed again.
_PRUNE = (
    """
    DELETE FROM gateway.deliveries WHERE id IN (
        SELECT id FROM gateway.deliveries WHERE created_at < now() - $1::interval
        ORDER BY created_at LIMIT $2) RETURNING 1
    """,
    """
    DELETE FROM gateway.budget_notices WHERE id IN (
        SELECT n.id FROM gateway.budget_notices n WHERE n.at < now() - $1::interval
            AND (n.period <> 'total'
                OR NOT EXISTS (SELECT FROM gateway.tenants t WHERE t.id = n.tenant_id))
        ORDER BY n.at LIMIT $2) RETURNING 1
    """,
)


@dataclass(frozen=True, slots=True)
class _End:
    """How an attempt ended; `pause` is in seconds, to the next one."""

    state: str
    status: int | None = None
    error: str | None = None
    pause: float = 0.0


class Deliveries:
    """One per process that sends; `run` must be running."""

    def __init__(
        self,
        postgres: Postgres,
        client: WebhookClient,
        hosts: str,
        noticed: Callable[[int], None] = lambda _: None,
    ) -> None:
        """`hosts` is the operator's allowlist, as set.

        `noticed(threshold)` hears of each notice once, in one of the processes, so that their
        counts add up; it must not raise.
        """
        self._postgres = postgres
        self._client = client
        self._hosts = parse_hosts(hosts)
        self._noticed = noticed
        self._busy: Counter[str] = Counter()  # webhooks with attempts under way
        self._wake = trio.Event()

    def wake(self) -> None:
        """Look for something to send now."""
        self._wake.set()

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Send for ever; what PostgreSQL cannot give now waits."""
        pruned_at = -PRUNE_EVERY
        async with trio.open_nursery() as nursery:
            task_status.started()
            while True:
                self._wake = trio.Event()
                try:
                    await self.tell()
                    await self._begin(nursery)
                    if trio.current_time() - pruned_at >= PRUNE_EVERY:
                        pruned_at = trio.current_time()
                        await self.prune()
                except StoreUnavailable:
                    log.warning("deliveries_wait")
                with trio.move_on_after(POLL):
                    await self._wake.wait()

    async def tell(self) -> None:
        """Log and count the notices that no process has told yet."""
        for row in await self._postgres.fetch(_TELL, TELL):
            log.info("budget_notice", **row)
            self._noticed(row["threshold"])

    async def prune(self) -> None:
        """Delete deliveries, and notices of periods long past, that are over 90 days old."""
        for statement in _PRUNE:
            while len(await self._postgres.fetch(statement, KEEP, PRUNE_AT_ONCE)) == PRUNE_AT_ONCE:
                pass

    async def _begin(self, nursery: trio.Nursery) -> None:
        """Claim as many as there is room for, and begin their attempts."""
        room = AT_ONCE - self._busy.total()
        if room <= 0:
            return
        for row in await self._postgres.fetch(CLAIM, list(self._busy), EACH, room, LEASE):
            self._busy[row["webhook_id"]] += 1
            nursery.start_soon(self._deliver, dict(row))

    async def _deliver(self, row: dict[str, Any]) -> None:
        try:
            end = await self._attempt(row)
            with trio.move_on_after(RECORD_LIMIT, shield=True):
                await self._record(row, end)
        finally:
            self._busy[row["webhook_id"]] -= 1
            self._busy += Counter()  # drops what is at nought
            self.wake()

    async def _attempt(self, row: dict[str, Any]) -> _End:
        """Send once, and say what that means; never raises for what a receiver does."""
        if row["attempts"] > len(PAUSES) + 1:  # whoever made the last one did not live to say so
            return _End("given_up", error="no attempt was heard of again")
        try:
            check_url(row["url"], self._hosts)
            body = message(row)
            headers = signed(row["secret"], row["message_id"], int(time.time()), body)
            receipt = await self._client.post(row["url"], headers, body)
        except Exception as error:  # noqa: BLE001 - whatever one does, the others are to be told
            return _failed(row["attempts"], None, _reason(error))
        if 200 <= receipt.status < 300:
            return _End("delivered", receipt.status)
        if receipt.status == GONE:
            return _End("given_up", receipt.status, "the receiver wants no more")
        asked = min(receipt.retry_after or 0.0, PATIENCE)
        return _failed(row["attempts"], receipt.status, "not accepted", asked)

    async def _record(self, row: dict[str, Any], end: _End) -> None:
        try:
            await self._postgres.fetch(
                _RECORD,
                row["id"],
                row["attempts"],
                end.state,
                timedelta(seconds=end.pause),
                end.status,
                end.error,
            )
        except StoreUnavailable:
            log.warning("delivery_unrecorded", delivery=row["id"])
            return
        level = log.info if end.state == "delivered" else log.warning
        level(
            "webhook_attempt",
            webhook=row["webhook_id"],
            delivery=row["id"],
            attempt=row["attempts"],
            state=end.state,
            status=end.status,
            error=end.error,
        )


def _reason(error: Exception) -> str:
    """Say why nothing was delivered."""
    if isinstance(error, Refused):
        return "the host is not on the allowlist"
    if isinstance(error, Undelivered):
        return error.reason
    if isinstance(error, ValueError):  # written by hand
        return "the secret is not one"
    log.error("delivery_broke", exc_info=error)
    return "no proper answer"


def _failed(attempts: int, status: int | None, error: str, asked: float = 0.0) -> _End:
    """Try again after a pause, or give up after the last."""
    if attempts > len(PAUSES):
        return _End("given_up", status, error)
    pause = PAUSES[attempts - 1] * random.uniform(1, 1.2)  # noqa: S311 - spreads load, no secret
    return _End("waiting", status, error, max(pause, asked))
