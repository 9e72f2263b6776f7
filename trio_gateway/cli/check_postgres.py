"""The doctor's look at PostgreSQL: reached, supported, writable, durable, roomy, direct."""

from __future__ import annotations

import secrets
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import trio

from trio_gateway.cli.finding import Finding, ahead, clock, fail, ok, warn
from trio_gateway.cli.session import explained, place
from trio_gateway.clients.postgres import connect, mapped_errors, open_listener
from trio_gateway.core.errors import StoreUnavailable

if TYPE_CHECKING:
    from collections.abc import Mapping

    from trio_gateway.clients.bridge import Bridge
    from trio_gateway.clients.postgres import Postgres

OLDEST = 140_000  # server_version_num
NOTIFY_LIMIT = 2.5  # seconds for a notification to come round
LISTEN = "TRIO_GATEWAY_DATABASE_LISTEN_URL"
_STATE = """
SELECT current_setting('server_version_num')::int AS version,
    current_setting('server_version') AS name, pg_is_in_recovery() AS standby,
    current_setting('transaction_read_only') = 'on' AS read_only,
    current_setting('server_encoding') AS encoding, current_setting('fsync') AS fsync,
    current_setting('full_page_writes') AS full_page_writes,
    current_setting('synchronous_commit') AS synchronous_commit,
    current_setting('max_connections')::int
        - current_setting('superuser_reserved_connections')::int
        - coalesce(current_setting('reserved_connections', true)::int, 0) AS connections,
    (SELECT datconnlimit FROM pg_database WHERE datname = current_database()) AS of_database,
    (SELECT rolconnlimit FROM pg_roles WHERE rolname = current_user) AS of_role
"""


@dataclass(frozen=True)
class Server:
    """What was found; `connections` is how many there may be, None where it is not known."""

    findings: tuple[Finding, ...]
    connections: int | None = None


async def check_server(postgres: Postgres, url: str) -> Server:
    """Ask the server about itself. Raises StoreUnavailable, and ValueError for a bad address."""
    row = dict((await postgres.fetch(_STATE))[0])
    began = time.time()
    now = (await postgres.fetch("SELECT extract(epoch FROM clock_timestamp())::float8 AS it"))[0]
    skew = ahead(now["it"], began, time.time())
    limits = [row["connections"], row["of_database"], row["of_role"]]
    found = (_server(row, url), _encoding(row), _durability(row), clock("postgres clock", skew))
    return Server(found, min(limit for limit in limits if limit is not None and limit >= 0))


def _server(row: Mapping[str, Any], url: str) -> Finding:
    if row["version"] < OLDEST:
        return fail("postgres", f"version {row['name']} is too old", "Upgrade to 14 or later.")
    if row["standby"]:
        return fail("postgres", "is a read-only standby", "Point DATABASE_URL at the primary.")
    if row["read_only"]:
        advice = "Turn default_transaction_read_only off for this database and its user."
        return fail("postgres", "takes no changes: transactions are read-only", advice)
    return ok("postgres", f"{row['name']} at {place(url)}")


def _encoding(row: Mapping[str, Any]) -> Finding:
    if row["encoding"] == "UTF8":
        return ok("postgres encoding", "UTF8")
    advice = "Make the database with ENCODING 'UTF8', and restore into it."
    detail = f"{row['encoding']}: names in other scripts are refused or garbled"
    return fail("postgres encoding", detail, advice)


def _durability(row: Mapping[str, Any]) -> Finding:
    names = ("fsync", "full_page_writes", "synchronous_commit")
    loose = [name for name in names if row[name] == "off"]
    if not loose:
        return ok("postgres durability", "what is committed is on disk")
    detail = f"off: {', '.join(loose)}; a crash of the server may lose or damage the ledger"
    return warn("postgres durability", detail, "Turn them on: the ledger is the truth.")


async def check_pooler(bridge: Bridge, postgres: Postgres, listen_url: str) -> list[Finding]:
    """Tell whether something between here and PostgreSQL shares connections out.

    A pooler makes up the process id that a client is told for cancelling.
    """
    pooled = await postgres.run(_is_pooled)
    if not pooled:
        found = ok("postgres pooler", "none in the way")
    elif listen_url:
        found = ok("postgres pooler", f"DATABASE_URL leads through one, {LISTEN} is set")
    else:
        detail = "DATABASE_URL leads through one, and so does the listener"
        found = warn("postgres pooler", detail, f"Set {LISTEN} to PostgreSQL itself.")
    past: bool = not listen_url or not await bridge.run(_leads_through_pooler, listen_url)
    if not past:
        detail = f"{LISTEN} leads through one"
        return [warn("postgres pooler", detail, "Let it lead to PostgreSQL itself.")]
    return [found]


async def _is_pooled(connection: Any) -> bool:
    told: int = connection.get_server_pid()
    real: int = await connection.fetchval("SELECT pg_backend_pid()")
    return told != real


async def _leads_through_pooler(url: str) -> bool:
    with mapped_errors():
        connection = await connect(url)
        try:
            return await _is_pooled(connection)
        finally:
            connection.terminate()


async def check_notifications(bridge: Bridge, postgres: Postgres, url: str) -> list[Finding]:
    """Send one to ourselves, on a connection that listens at `url`."""
    channel, heard = f"gateway_doctor_{secrets.token_hex(8)}", trio.Event()
    advice = f"Set {LISTEN} to PostgreSQL itself, past any pooler."
    try:
        async with open_listener(bridge, url, channel, lambda _: heard.set(), lambda: None):
            began = time.monotonic()
            await postgres.fetch("SELECT pg_notify($1, '')", channel)
            with trio.move_on_after(NOTIFY_LIMIT):
                await heard.wait()
            took = (time.monotonic() - began) * 1000
    except (StoreUnavailable, ValueError) as error:
        detail = explained(error, url) or "the address is not a PostgreSQL address"
        return [fail("notifications", detail, advice)]
    if not heard.is_set():
        return [fail("notifications", "none comes round: keys would be revoked late", advice)]
    return [ok("notifications", f"come round in {took:.1f} ms")]
