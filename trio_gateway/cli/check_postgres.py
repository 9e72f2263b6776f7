"""The doctor's look at PostgreSQL: reached, writable, migrated, and able to notify."""

from __future__ import annotations

import secrets
import time
from typing import TYPE_CHECKING

import trio

from trio_gateway.cli.check_blobs import check_blobs
from trio_gateway.cli.finding import Finding, clock, fail, ok, warn
from trio_gateway.cli.session import explained, place
from trio_gateway.clients.postgres import NotMigrated, open_listener, open_postgres
from trio_gateway.core.errors import StoreUnavailable
from trio_gateway.migrate import current, head

if TYPE_CHECKING:
    from trio_gateway.cli.addresses import Addresses
    from trio_gateway.clients.bridge import Bridge
    from trio_gateway.clients.postgres import Postgres

OLDEST = 140_000  # server_version_num; older ones have no support any more
NOTIFY_LIMIT = 3.0  # seconds for a notification to come round
_STATE = """
SELECT current_setting('server_version_num')::int AS version,
    current_setting('server_version') AS name, pg_is_in_recovery() AS standby,
    extract(epoch FROM clock_timestamp())::float8 AS clock
"""


async def check_postgres(bridge: Bridge, addresses: Addresses) -> list[Finding]:
    """Return what was found; one failure where there is no server.

    What PostgreSQL knows of the blob store is compared with the store.
    """
    url = addresses.required_database_url()
    listen_url = addresses.settings.database_listen_url
    try:
        async with open_postgres(bridge, url, size=2) as postgres:
            return [
                *await _server(postgres, url),
                *await _schema(bridge, postgres, url),
                await _notifications(bridge, postgres, listen_url or url),
                *await _blobs(postgres, addresses),
            ]
    except (StoreUnavailable, ValueError) as error:
        sentence = explained(error, url) or "the address is not a PostgreSQL address"
        return [fail("postgres", sentence, "Start PostgreSQL, or correct DATABASE_URL.")]


async def _server(postgres: Postgres, url: str) -> list[Finding]:
    began = time.time()
    row = (await postgres.fetch(_STATE))[0]
    skew = row["clock"] - (began + time.time()) / 2
    found = [ok("postgres", f"{row['name']} at {place(url)}")]
    if row["version"] < OLDEST:
        found = [warn("postgres", f"version {row['name']} is old", "Upgrade to 14 or later.")]
    if row["standby"]:
        found = [fail("postgres", "is a read-only standby", "Point DATABASE_URL at the primary.")]
    return [*found, clock("postgres clock", skew)]


async def _schema(bridge: Bridge, postgres: Postgres, url: str) -> list[Finding]:
    version, expected = await bridge.run(current, url), head()
    if version != expected:
        return [
            fail(
                "migrations",
                f"the database is at {version or 'none'}, this release expects {expected}",
                "Run `trio-gateway migrate`.",
            )
        ]
    found = [ok("migrations", f"at {version}")]
    try:
        keys = await postgres.fetch("SELECT FROM gateway.api_keys LIMIT 1")
    except NotMigrated as error:
        return [*found, fail("keys", str(error), "Restore the schema `gateway` from a backup.")]
    if keys:
        return [*found, ok("keys", "there are some")]
    advice = "Run `trio-gateway tenant create` and `trio-gateway key create`."
    return [*found, warn("keys", "there is none: every call is refused", advice)]


async def _blobs(postgres: Postgres, addresses: Addresses) -> list[Finding]:
    try:
        return [await check_blobs(postgres, addresses)]
    except NotMigrated:
        return []  # said above


async def _notifications(bridge: Bridge, postgres: Postgres, url: str) -> Finding:
    channel, heard = f"gateway_doctor_{secrets.token_hex(8)}", trio.Event()
    advice = "Set TRIO_GATEWAY_DATABASE_LISTEN_URL to PostgreSQL itself, past any pooler."
    try:
        async with open_listener(bridge, url, channel, lambda _: heard.set(), lambda: None):
            await postgres.fetch("SELECT pg_notify($1, '')", channel)
            with trio.move_on_after(NOTIFY_LIMIT):
                await heard.wait()
    except (StoreUnavailable, ValueError) as error:
        return fail(
            "notifications",
            explained(error, url) or "the address is not a PostgreSQL address",
            advice,
        )
    if not heard.is_set():
        return fail("notifications", "none comes round: keys would be revoked late", advice)
    return ok("notifications", "come round")
