"""Keeps the monthly partitions: makes the next ones in time, drops those past retention.

`gateway.spend` is never dropped, so that `total` budgets outlive the rows they came from.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import structlog
import trio

from trio_gateway.core.errors import StoreUnavailable
from trio_gateway.services.ledger_slots import HOURS_KEPT

if TYPE_CHECKING:
    from trio_gateway.clients.postgres import Postgres

log = structlog.get_logger()

EVERY = 6 * 3600.0  # seconds
CHILDREN = """
SELECT c.relname AS name, right(c.relname, 6) AS month
FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid
WHERE i.inhparent IN ('gateway.ledger'::regclass, 'gateway.audit_log'::regclass)
  AND c.relname ~ '^(ledger|audit_log)_[0-9]{6}$'
"""


class Retention:
    """One per worker; they take turns by the database's own lock."""

    def __init__(self, postgres: Postgres, days: int) -> None:
        """`days` of rows are kept, and whole months at the least; 0 keeps all."""
        self._postgres = postgres
        self._days = days

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Look after the partitions for ever, four times a day."""
        task_status.started()
        while True:
            try:
                dropped = await self.tend(datetime.now(UTC))
            except StoreUnavailable:
                log.warning("partitions_wait")
            else:
                if dropped:
                    log.info("partitions_dropped", names=dropped)
            await trio.sleep(EVERY)

    async def tend(self, now: datetime) -> list[str]:
        """Make what is missing and drop what is over; return the names dropped."""
        oldest = f"{now - timedelta(days=self._days):%Y%m}" if self._days else ""
        return await self._postgres.transact(_tend, oldest)


async def _tend(connection: Any, oldest: str) -> list[str]:
    # Takes the lock that keeps two workers from doing this at once.
    await connection.execute("SELECT gateway.ensure_partitions()")
    over = [row["name"] for row in await connection.fetch(CHILDREN) if row["month"] < oldest]
    for name in over:
        await connection.execute(f'DROP TABLE gateway."{name}"')
    await connection.execute(
        "DELETE FROM gateway.usage_hourly WHERE hour < now() - $1::interval", HOURS_KEPT
    )
    await connection.execute(
        "DELETE FROM gateway.usage_totals WHERE unit = 'hour' AND at < now() - $1::interval",
        HOURS_KEPT,
    )
    return sorted(over)
