"""The admin listener over a large installation: python -m tests.load.admin_bench [keys] [rows].

A million keys and ten million ledger rows unless told otherwise: some minutes to make, about
eight gigabytes of disk. Then the pages and lists that operators look at most, the plans of the
overview's queries, and live calls alone and beside an operator who looks at everything.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from functools import partial
from typing import Any

import httpx
from rich.console import Console
from rich.table import Table

from tests.load import client, targets
from tests.load.ratio_bench import CHAT, LIMITS
from trio_gateway.clients.postgres import run_once
from trio_gateway.services.usage import last_days, last_hours

TOKEN = "the operator of this bench"
TENANTS = 1000
DAYS = 60
CHUNK = 500_000
SAMPLES = 40
ROUNDS = 4
PACED = 500  # live calls of one round, 50 a second
LOOKS = (
    ("overview page", "/"),
    ("usage page", "/usage"),
    ("tenants page", "/tenants"),
    ("keys page", "/keys"),
    ("a key found", "/keys?find=KEY+12"),
    ("ledger page", "/ledger"),
    ("ledger page by outcome", "/ledger?outcome=upstream_error"),
    ("audit page", "/audit"),
    ("scrape", "/metrics"),
    ("tenants, 100", "/admin/v1/tenants?limit=100"),
    ("keys, 100", "/admin/v1/keys?limit=100"),
    ("ledger, 100", "/admin/v1/ledger?limit=100"),
    ("ledger of a tenant, 100", "/admin/v1/ledger?tenant=tenant-0007&limit=100"),
    ("live calls", "/admin/v1/calls"),
)
BESIDE = ("/", "/metrics", "/admin/v1/ledger?limit=100", "/usage")
PARTITIONS = """
SELECT format('CREATE TABLE IF NOT EXISTS gateway.ledger_%s PARTITION OF gateway.ledger'
    ' FOR VALUES FROM (%L) TO (%L)', to_char(m, 'YYYYMM'), m, m + interval '1 month') AS it
FROM generate_series(date_trunc('month', now() - interval '61 days'),
    date_trunc('month', now()) - interval '1 day', interval '1 month') AS m
"""
SEED_TENANTS = """
INSERT INTO gateway.tenants (id, name, all_models, budget, budget_period)
SELECT 'ten_' || n, 'tenant-' || lpad(n::text, 4, '0'), true, 1000000000, 'month'
FROM generate_series(0, $1::int - 1) AS n
"""
SEED_KEYS = """
INSERT INTO gateway.api_keys (id, tenant_id, name, public_id, hash)
SELECT 'key_' || n, 'ten_' || (n % $2::int), 'key ' || n, 'public' || n, 'none'
FROM generate_series($3::int, $4::int - 1) AS n WHERE n < $1::int
"""
SEED_LEDGER = """
INSERT INTO gateway.ledger
SELECT 'req_' || md5(n::text), 'ten_' || (n % $2::int), 'key_' || (n * 7919 % $3::int),
    '/v1/chat/completions', 'model-' || (n % 12) || ':latest',
    CASE WHEN n % 50 = 0 THEN 502 ELSE 200 END,
    CASE WHEN n % 50 = 0 THEN 'upstream_error' WHEN n % 11 = 0 THEN 'aborted' ELSE 'completed' END,
    'final', 200, 100, 300, 500, 'http://127.0.0.1:11434',
    now() - make_interval(secs => $4::float8 * (n % 1000003) / 1000003.0),
    50 + n % 900, 1000, NULL
FROM generate_series($1::bigint, $1::bigint + $5::int - 1) AS n
"""


def ask(url: str, query: str, *args: Any) -> Any:
    """Run one query, however long it takes."""

    async def go() -> Any:
        import asyncpg  # noqa: PLC0415 - the pool of the product ends what takes ten seconds

        connection = await asyncpg.connect(url)
        try:
            return await connection.fetch(query, *args, timeout=1800)
        finally:
            await connection.close()

    return asyncio.run(go())


def seed(url: str, keys: int, rows: int) -> None:
    """Fill the tables, saying how far it is."""
    for row in ask(url, PARTITIONS):
        with contextlib.suppress(Exception):  # the default partition may have rows of that month
            ask(url, row["it"])
    ask(url, SEED_TENANTS, TENANTS)
    for start in range(0, keys, CHUNK):
        ask(url, SEED_KEYS, keys, TENANTS, start, start + CHUNK)
    began = time.monotonic()
    for start in range(0, rows, CHUNK):
        count = min(CHUNK, rows - start)
        ask(url, SEED_LEDGER, start, TENANTS, keys, DAYS * 86_400.0, count)
        took = time.monotonic() - began
        print(f"{start + count:,} of {rows:,} rows, {took:.0f} s", file=sys.stderr, flush=True)
    ask(url, "ANALYZE")


@contextlib.contextmanager
def listener(env: dict[str, str], metrics: str) -> Iterator[targets.Target]:
    """Run the admin listener."""
    own = {
        **env,
        "TRIO_GATEWAY_ADMIN_TOKEN": TOKEN,
        "TRIO_GATEWAY_LOG_LEVEL": "error",
        "PROMETHEUS_MULTIPROC_DIR": metrics,
        "_TRIO_GATEWAY_SLOT": "admin",
    }
    with targets.hypercorn("admin", "trio_gateway.admin_asgi:app", own, "/healthz") as target:
        yield target


@contextlib.contextmanager
def operator(port: int) -> Iterator[httpx.Client]:
    """Log in to the dashboard; the API's token goes along."""
    headers = {"authorization": f"Bearer {TOKEN}"}
    with httpx.Client(base_url=f"http://127.0.0.1:{port}", headers=headers, timeout=60) as http:
        page = http.get("/login").text
        hidden = re.findall(r'<input[^>]*type="hidden"[^>]*>', page)
        pairs = [(re.search(r'name="([^"]*)"', it), re.search(r'value="([^"]*)"', it))
                 for it in hidden]  # fmt: skip
        form = {name[1]: value[1] for name, value in pairs if name and value}
        answer = http.post("/login", data=form | {"token": TOKEN})
        assert answer.status_code in {200, 302, 303}, answer.status_code
        yield http


def look(http: httpx.Client, path: str) -> float:
    """Return how many milliseconds an answer takes, a 200."""
    began = time.perf_counter()
    answer = http.get(path)
    took = (time.perf_counter() - began) * 1000
    assert answer.status_code == 200, (path, answer.status_code, answer.text[:300])
    return took


def looks(http: httpx.Client) -> Table:
    """Time every look."""
    table = Table("look", "first ms", "median ms", "p99 ms", title="One operator, one at a time")
    for name, path in LOOKS:
        first = look(http, path)
        taken = sorted(look(http, path) for _ in range(SAMPLES))
        table.add_row(name, f"{first:.0f}", f"{taken[len(taken) // 2]:.0f}", f"{taken[-1]:.0f}")
    return table


def plans(url: str) -> Table:
    """Explain the overview's queries as they run."""
    from trio_gateway.services import usage  # noqa: PLC0415 - its texts, for this alone

    table = Table("query", "ms", "read from", title="Plans of the overview")
    queries = {
        "24 hours by outcome": (usage._OUTCOMES, last_hours(24)),
        "24 hours by model": (usage.series_query("model", "hour", one=False), last_hours(24)),
        "30 days by model": (usage.series_query("model", "day", one=False), last_days(30)),
        "30 days by tenant": (usage.series_query("tenant", "day", one=False), last_days(30)),
    }
    for name, (text, bounds) in queries.items():
        rest = (None, 8) if "$4" in text else ()
        rows = ask(url, "EXPLAIN (ANALYZE, FORMAT JSON) " + text, *bounds, *rest)
        plan = json.loads(rows[0][0])[0]
        table.add_row(name, f"{plan['Execution Time']:.1f}", ", ".join(sorted(_read(plan["Plan"]))))
    return table


def _read(node: dict[str, Any]) -> set[str]:
    found = set()
    if "Relation Name" in node:
        found.add(f"{node['Node Type']} of {node['Relation Name']}")
    for inner in node.get("Plans", ()):
        found |= _read(inner)
    return found


def beside(http: httpx.Client, port: int, key: str) -> Table:
    """Time live calls alone and beside an operator, over alternate rounds."""
    headers = {"authorization": f"Bearer {key}"}
    request = client.encode("localhost", "/v1/chat/completions", json.dumps(CHAT).encode(), headers)
    samples = {"alone": client.Sample(), "beside an operator": client.Sample()}
    client.run(partial(client.open_loop, port, request, rate=50, count=100))
    for _ in range(ROUNDS):
        for name, sample in samples.items():
            with looking(http) if name != "alone" else contextlib.nullcontext():
                seen = client.run(partial(client.open_loop, port, request, rate=50, count=PACED))
            assert set(seen.statuses) == {200}, seen.statuses
            sample.latencies += seen.latencies
    table = Table("live calls, 50/s", "p50 ms", "p99 ms", title="An operator beside the calls")
    for name, sample in samples.items():
        table.add_row(name, *(f"{sample.percentile(share):.1f}" for share in (0.5, 0.99)))
    return table


@contextlib.contextmanager
def looking(http: httpx.Client) -> Iterator[None]:
    """Look at something twice a second."""
    stop = threading.Event()

    def go() -> None:
        turn = 0
        while not stop.wait(0.5):
            look(http, BESIDE[turn % len(BESIDE)])
            turn += 1

    thread = threading.Thread(target=go)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def main(keys: int, rows: int) -> None:
    """Fill, measure, print."""
    console = Console(width=120)
    with (
        targets.installation() as (env, key),
        tempfile.TemporaryDirectory() as metrics,
        targets.upstream(20, 0.0) as direct,
    ):
        for table in ("tenants", "api_keys"):
            asyncio.run(run_once(env["DATABASE_URL"], LIMITS.format(table)))
        seed(env["DATABASE_URL"], keys, rows)
        shared = {**env, "PROMETHEUS_MULTIPROC_DIR": metrics, "_TRIO_GATEWAY_SLOT": "w0"}
        url = f"http://127.0.0.1:{direct.port}"
        with (
            targets.gateway("gateway", shared, url, backend_slots=64) as target,
            listener(env, metrics) as admin,
            operator(admin.port) as http,
        ):
            console.print(plans(env["DATABASE_URL"]))
            console.print(looks(http))
            console.print(beside(http, target.port, key))
            console.print(f"the listener's memory: {admin.rss():.0f} MB")
        size = "SELECT pg_size_pretty(pg_database_size(current_database())) AS it"
        console.print(f"the database: {ask(env['DATABASE_URL'], size)[0]['it']}")


if __name__ == "__main__":
    given = [int(word) for word in sys.argv[1:3]]
    main(*(given + [1_000_000, 10_000_000][len(given) :]))
