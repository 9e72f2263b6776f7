"""What noticing budgets costs the ledger: milliseconds to write a group, with and without it.

    python -m tests.load.notices_bench

Groups of 1, 16 and 200 rows, each row of another key of a few tenants, in turns in one run, on
databases with and without the trigger. A figure is the fastest tenth of the writer's statement,
which others on the machine disturb least.
"none": no tenant and no key has a budget. "far": all have one and are far from its end. "near":
all are over 80 per cent, and were noticed.
"""

from __future__ import annotations

import asyncio
import statistics
import time
import uuid
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


async def prepare(url: str, *, noticing: bool) -> tuple[Any, Any]:
    """Fill a database; return a connection to it and the writer's statement."""
    connection = await connect(url)
    for kind, budget in BUDGETS.items():
        await connection.execute(SEED_T, kind, budget, TENANTS)
        await connection.execute(SEED_K, kind, budget, KEYS, TENANTS)
    await connection.execute(SPENT)
    if not noticing:
        await connection.execute("DROP TRIGGER notice_spending ON gateway.ledger")
    await connection.execute("VACUUM ANALYZE")
    return connection, await connection.prepare(RECORD)


async def measure(urls: dict[bool, str]) -> dict[tuple[str, int, bool], float]:
    """Return the milliseconds of each kind and size, with and without notices."""
    opened = {noticing: await prepare(url, noticing=noticing) for noticing, url in urls.items()}
    took: dict[tuple[str, int, bool], list[float]] = {}
    for turn in range(WARM_UP + ROUNDS):
        for kind in BUDGETS:
            for size in SIZES:
                rows = group(kind, size)
                for noticing in (turn % 2 == 0, turn % 2 == 1):
                    began = time.perf_counter()
                    await opened[noticing][1].fetch(rows)
                    each = 1000 * (time.perf_counter() - began)
                    if turn >= WARM_UP:
                        took.setdefault((kind, size, noticing), []).append(each)
    for connection, _ in opened.values():
        await connection.close()
    return {each: statistics.quantiles(times, n=10)[0] for each, times in took.items()}


def main() -> None:
    """Measure, print one table."""
    table = Table(title=f"Milliseconds to write a group, fastest tenth of {ROUNDS}")
    for column in ("budgets", "rows", "without", "with", "more"):
        table.add_column(column, justify="left" if column == "budgets" else "right")
    with scratch() as folder, stores.start(folder / "d") as pair:
        running = TestStores(pair.database_url, pair.redis_url)
        with fresh_database(running) as one, fresh_database(running) as other:
            found = asyncio.run(measure({True: one, False: other}))
    for kind in BUDGETS:
        for size in SIZES:
            without, with_it = found[kind, size, False], found[kind, size, True]
            more = f"{100 * (with_it / without - 1):+.0f} %"
            table.add_row(kind, str(size), f"{without:.2f}", f"{with_it:.2f}", more)
    Console().print(table)


if __name__ == "__main__":
    main()
