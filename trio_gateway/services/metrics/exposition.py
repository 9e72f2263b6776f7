"""The scrape: what every process of the installation has counted, and what the stores hold."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Any

import trio
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4
from prometheus_client.registry import Collector

from trio_gateway.clients.postgres import within
from trio_gateway.core.errors import StoreUnavailable
from trio_gateway.services.metrics.instruments import PREFIX

if TYPE_CHECKING:
    from collections.abc import Iterable

    from prometheus_client.core import Metric

    from trio_gateway.clients.postgres import Postgres
    from trio_gateway.services.metrics.metrics import Metrics

STORE_LIMIT = 1.0  # seconds for PostgreSQL to say what it holds; a scrape is given five

# The open batches alone, by their index; a lease is a line under way, of which there are few.
OPEN_BATCHES = """
SELECT status, count(*) AS batches, sum(total) AS total, sum(completed) AS succeeded,
    sum(failed) AS failed,
    (SELECT count(*) FROM gateway.batch_lines WHERE state = 'leased') AS leased
FROM gateway.batches WHERE status IN ('validating', 'in_progress', 'finalizing', 'cancelling')
GROUP BY status
"""
STATUSES = ("validating", "in_progress", "finalizing", "cancelling")


class Held(Collector):
    """What PostgreSQL said; None where it said nothing in time."""

    def __init__(self, rows: list[dict[str, Any]] | None) -> None:
        """Take the rows of OPEN_BATCHES."""
        self.rows = rows

    def collect(self) -> Iterable[Metric]:
        """Show batches and lines, or that they are not known."""
        yield GaugeMetricFamily(
            PREFIX + "database_up",
            "1 if PostgreSQL answered this scrape.",
            float(self.rows is not None),
        )
        if self.rows is None:
            return
        batches = GaugeMetricFamily(
            PREFIX + "batches_open", "Batches not ended.", labels=["status"]
        )
        count = dict.fromkeys(STATUSES, 0) | {row["status"]: row["batches"] for row in self.rows}
        for status, number in count.items():
            batches.add_metric([status], number)
        yield batches
        lines = GaugeMetricFamily(
            PREFIX + "batch_lines_open", "Lines of batches not ended.", labels=["state"]
        )
        leased = self.rows[0]["leased"] if self.rows else 0
        done = {state: sum(row[state] for row in self.rows) for state in ("succeeded", "failed")}
        total = sum(row["total"] for row in self.rows)
        for state, number in done.items():
            lines.add_metric([state], number)
        lines.add_metric(["leased"], leased)
        lines.add_metric(["queued"], max(0, total - leased - sum(done.values())))
        yield lines


async def scrape(metrics: Metrics, postgres: Postgres | None = None) -> tuple[bytes, str]:
    """Return a scrape's body and content type, soon, whatever the stores do."""
    held = await _held(postgres)
    return await trio.to_thread.run_sync(_render, metrics, held), CONTENT_TYPE_PLAIN_0_0_4


async def _held(postgres: Postgres | None) -> Held | None:
    if postgres is None:
        return None
    rows = None
    with suppress(StoreUnavailable), within(STORE_LIMIT):
        rows = [dict(row) for row in await postgres.fetch(OPEN_BATCHES)]
    return Held(rows)


def _render(metrics: Metrics, held: Held | None) -> bytes:
    merged = metrics.merged
    own = merged.text() if merged is not None else generate_latest(metrics.registry)
    if held is None:
        return own
    stored = CollectorRegistry()
    stored.register(held)
    return own + generate_latest(stored)
