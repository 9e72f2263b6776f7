"""The doctor's look at schema `gateway`: its version, its keys, its partitions, its admins."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from trio_gateway.cli.finding import Finding, fail, ok, warn
from trio_gateway.clients.postgres import NotMigrated
from trio_gateway.clients.schema import SCHEMA_VERSION

if TYPE_CHECKING:
    from collections.abc import Sequence

    from trio_gateway.clients.postgres import Postgres

MOST_COUNTED = 1000  # rows; past it "more than" will do
MOST_NAMED = 5
PARENTS = ("ledger", "audit_log")
_VERSION = "SELECT version_num AS it FROM gateway.alembic_version"
_ABSENT = """
SELECT parent || '_' || to_char(month, 'YYYYMM') AS name
FROM unnest(ARRAY['ledger', 'audit_log']) AS parent, generate_series(0, 2) AS ahead,
    LATERAL (SELECT date_trunc('month', now() AT TIME ZONE 'UTC')
        + make_interval(months => ahead) AS month) AS months
WHERE to_regclass(format('gateway.%I', parent || '_' || to_char(month, 'YYYYMM'))) IS NULL
ORDER BY parent DESC, ahead
"""
_SIZE = """
SELECT count(*) AS partitions, coalesce(sum(pg_total_relation_size(c.oid)), 0)::bigint AS bytes,
    coalesce(sum(greatest(c.reltuples, 0)), 0)::bigint AS rows
FROM pg_inherits JOIN pg_class c ON c.oid = inhrelid WHERE inhparent = 'gateway.ledger'::regclass
"""
_STRAYS = """
SELECT (SELECT count(*) FROM (SELECT FROM gateway.ledger_default LIMIT $1) AS l) AS ledger,
    (SELECT count(*) FROM (SELECT FROM gateway.audit_log_default LIMIT $1) AS a) AS audit_log
"""
_ADMINS = """
SELECT name, role, disabled_at IS NOT NULL AS disabled,
    coalesce(expires_at <= now(), false) AS expired
FROM gateway.admins ORDER BY name
"""


async def check_migrations(postgres: Postgres) -> list[Finding]:
    """Compare the database's version with this release's; `ok` alone lets the others look."""
    try:
        rows = await postgres.fetch(_VERSION)
    except NotMigrated:
        rows = []
    version = str(rows[0]["it"]) if rows else ""
    if version == SCHEMA_VERSION:
        return [ok("migrations", f"at {version}")]
    detail = f"the database is at {version or 'none'}, this release expects {SCHEMA_VERSION}"
    # versions are numbers of one width, so that they compare as text
    if len(version) == len(SCHEMA_VERSION) and version > SCHEMA_VERSION:
        advice = "Upgrade trio-gateway on this machine: migrations go forward only."
        return [fail("migrations", f"{detail}: it is of a newer release", advice)]
    return [fail("migrations", detail, "Run `trio-gateway migrate`.")]


async def check_keys(postgres: Postgres) -> list[Finding]:
    """Tell whether anybody can call."""
    try:
        keys = await postgres.fetch("SELECT FROM gateway.api_keys LIMIT 1")
    except NotMigrated as error:
        return [fail("keys", str(error), "Restore the schema `gateway` from a backup.")]
    if keys:
        return [ok("keys", "there are some")]
    advice = "Run `trio-gateway tenant create` and `trio-gateway key create`."
    return [warn("keys", "there is none: every call is refused", advice)]


async def check_partitions(postgres: Postgres) -> list[Finding]:
    """Tell how large the ledger is, and whether its rows go where retention finds them."""
    size = (await postgres.fetch(_SIZE))[0]
    absent = [row["name"] for row in await postgres.fetch(_ABSENT)]
    strays = (await postgres.fetch(_STRAYS, MOST_COUNTED + 1))[0]
    told = (
        f"{size['partitions']} partitions, {size['bytes'] / 1024**2:,.1f} MiB,"
        f" about {size['rows']:,} rows"
    )
    found = [ok("ledger", told)]
    if absent:
        advice = "Run `trio-gateway migrate`; running workers make them four times a day as well."
        found.append(warn("partitions", f"missing: {', '.join(absent)}", advice))
    else:
        found.append(ok("partitions", "there for this month and the next two"))
    return [*found, *(_strays(name, strays[name]) for name in PARENTS if strays[name])]


def _strays(name: str, count: int) -> Finding:
    rows = f"more than {MOST_COUNTED:,}" if count > MOST_COUNTED else f"{count:,}"
    detail = f"gateway.{name}_default holds {rows} rows that no month has room for"
    advice = (
        "Retention never drops them. Look at the clock of Redis, which stamps calls, and move or"
        " delete them before the month they belong to gets its partition."
    )
    return warn(f"{name} default partition", detail, advice)


async def check_admins(postgres: Postgres, *, others: bool) -> list[Finding]:
    """Tell who may use the admin listener; `others` where a token or a provider is set as well."""
    rows = await postgres.fetch(_ADMINS)
    usable = [r for r in rows if r["role"] == "admin" and not r["disabled"] and not r["expired"]]
    over = [row["name"] for row in rows if row["expired"] and not row["disabled"]]
    found = [_admins(rows, len(usable), others=others)]
    if over:
        names = ", ".join(over[:MOST_NAMED]) + (" and others" if len(over) > MOST_NAMED else "")
        advice = "Run `trio-gateway admin delete`, and `admin create` for those still wanted."
        found.append(warn("expired admins", f"refused since they expired: {names}", advice))
    return found


def _admins(rows: Sequence[Any], usable: int, *, others: bool) -> Finding:
    if usable:
        return ok("admins", f"{usable} with role admin, {len(rows)} tokens in all")
    if others:
        return ok("admins", "none in the database; the settings let somebody in")
    if rows:
        advice = "Run `trio-gateway admin create NAME --role admin` or `admin enable NAME`."
        return warn("admins", "nobody of role admin is left: nothing can be changed", advice)
    advice = (
        "Run `trio-gateway admin create NAME --role admin`, or take the token that `serve` prints"
        " once at its next start; if the service has TRIO_GATEWAY_ADMIN_TOKEN, give it here, too."
    )
    return warn("admins", "there is none", advice)
