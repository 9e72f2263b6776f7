"""What the ledger's triggers cost its writer: milliseconds to write a group of rows.

    python -m tests.load.trigger_bench

Groups of 1, 16 and 200 rows, each row of another key of a few tenants, in turns in one run, on
databases with no trigger, with the sums by hour and day, and with the notices of budgets as well;
the figure is of the statement that the writer sends. "none": no tenant and no key has a budget.
"far": both have one and are far from its end. "near": both are over 80 per cent, and were noticed.
"""

from __future__ import annotations

import asyncio
import contextlib
import statistics
import time
import uuid
from collections.abc import Sequence
from typing import Any

import orjson
from rich.console import Console
from rich.table import Table

from tests.stores import TestStores, fresh_database, scratch
from trio_gateway.clients.postgres import connect
from trio_gateway.embedded import stores
from trio_gateway.services.ledger.ledger import RECORD

SIZES = (1, 16, 200)
ROUNDS = 200
WARM_UP = 20
KEYS = 10_000
TENANTS = 20
VARIANTS = {  # by the triggers that are dropped
    "no trigger": ("notice_spending", "count_usage"),
    "sums": ("notice_spending",),
    "sums, notices": (),
}
BUDGETS = {"none": None, "far": 10**15, "near": 10**9}
SEED_T = """
INSERT INTO gateway.tenants (id, name, budget)
SELECT format('%s_t%s', $1::text, n), format('%s-t%s', $1::text, n), $2
FROM generate_series(0, $3::int - 1) n
"""
SEED_K = """
INSERT INTO gateway.api_keys (id, tenant_id, public_id, hash, budget)
SELECT format('%s_k%s', $1::text, n), format('%s_t%s', $1::text, n % $4::int),
    format('%s_p%s', $1::text, n), 'x', $2 FROM generate_series(0, $3::int - 1) n
"""
SPENT = """
INSERT INTO gateway.spend SELECT scope, (now() AT TIME ZONE 'UTC')::date, 9 * 10 ^ 8 FROM (
    SELECT 't:' || id AS scope FROM gateway.tenants WHERE budget = 10 ^ 9
    UNION ALL SELECT 'k:' || id FROM gateway.api_keys WHERE budget = 10 ^ 9) s
"""


def group(kind: str, size: int) -> str:
    """Write the rows of a group as the ledger's writer does."""
    now = time.time_ns() // 1000
    return orjson.dumps(
        [
            {
                "request_id": uuid.uuid4().hex,
                "tenant_id": f"{kind}_t{at % TENANTS}",
                "key_id": f"{kind}_k{at}",
                "endpoint": "/api/chat",
                "model": "llama3.2:latest",
                "status_code": 200,
                "outcome": "completed",
                "basis": "final",
                "prompt_tokens": 0,
                "completion_tokens": 0,
                "charged_tokens": 1,
                "held_tokens": 1,
                "backend": "b",
                "started_us": now + at,
                "ttft_ms": 1.0,
                "duration_ms": 2.0,
                "batch_id": None,
            }
            for at in range(size)
        ]
    ).decode()


async def prepare(url: str, dropped: Sequence[str]) -> tuple[Any, Any]:
    """Fill a database; return a connection to it and the writer's statement."""
    connection = await connect(url)
    for kind, budget in BUDGETS.items():
        await connection.execute(SEED_T, kind, budget, TENANTS)
        await connection.execute(SEED_K, kind, budget, KEYS, TENANTS)
    await connection.execute(SPENT)
    for trigger in dropped:
        await connection.execute(f"DROP TRIGGER {trigger} ON gateway.ledger")
    await connection.execute("VACUUM ANALYZE")
    return connection, await connection.prepare(RECORD)


async def measure(urls: dict[str, str]) -> dict[tuple[str, int, str], float]:
    """Return the milliseconds of each kind, size and variant."""
    opened = {name: await prepare(url, VARIANTS[name]) for name, url in urls.items()}
    took: dict[tuple[str, int, str], list[float]] = {}
    for turn in range(WARM_UP + ROUNDS):
        for kind in BUDGETS:
            for size in SIZES:
                rows = group(kind, size)
                names = list(opened)
                for name in names[turn % 3 :] + names[: turn % 3]:
                    began = time.perf_counter()
                    await opened[name][1].fetch(rows)
                    each = 1000 * (time.perf_counter() - began)
                    if turn >= WARM_UP:
                        took.setdefault((kind, size, name), []).append(each)
    for connection, _ in opened.values():
        await connection.close()
    return {each: statistics.quantiles(times, n=10)[0] for each, times in took.items()}


def main() -> None:
    """Measure, print one table."""
    table = Table(title=f"Milliseconds to write a group, fastest tenth of {ROUNDS}")
    for column in ("budgets", "rows", *VARIANTS):
        table.add_column(column, justify="left" if column == "budgets" else "right")
    with (
        scratch() as folder,
        stores.start(folder / "d") as pair,
        contextlib.ExitStack() as databases,
    ):
        running = TestStores(pair.database_url, pair.redis_url)
        urls = {name: databases.enter_context(fresh_database(running)) for name in VARIANTS}
        found = asyncio.run(measure(urls))
    for kind in BUDGETS:
        for size in SIZES:
            table.add_row(kind, str(size), *(f"{found[kind, size, name]:.2f}" for name in VARIANTS))
    Console().print(table)


if __name__ == "__main__":
    main()
