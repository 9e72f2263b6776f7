"""The operator's book of webhooks; each change and its record are one transaction."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from trio_gateway.clients.postgres import Duplicate
from trio_gateway.services.account_rows import (
    NotFound,
    Refused,
    Row,
    Taken,
    Unfit,
    find_tenant,
    insert,
    new_id,
    printable,
    storable,
    update,
    write_event,
)
from trio_gateway.services.names import check_name
from trio_gateway.services.notices.addresses import check_url, parse_hosts
from trio_gateway.services.notices.signing import new_secret

if TYPE_CHECKING:
    from collections.abc import Mapping

    from trio_gateway.clients.postgres import Connection, Postgres

MOST = 1000  # webhooks of one installation
COLUMNS = ("url", "tenant", "disabled")
# Never the secret. The last attempt is that of the delivery made last that has had one.
_SELECT = """
SELECT w.id, w.name, w.url, w.tenant_id, t.name AS tenant, w.disabled_at, w.created_at,
    w.updated_at, (SELECT count(*) FROM gateway.deliveries d
        WHERE d.webhook_id = w.id AND d.state = 'waiting') AS waiting
FROM gateway.webhooks w LEFT JOIN gateway.tenants t ON t.id = w.tenant_id
"""
_FIND = _SELECT + "WHERE w.id = $1 OR w.name = $1 ORDER BY w.id = $1 DESC LIMIT 1"
_LIST = _SELECT + "ORDER BY w.name"
_DELIVERIES = """
SELECT d.id, d.message_id, d.notice_id, d.state, d.attempts, d.status_code, d.error, d.created_at,
    CASE WHEN d.state = 'waiting' THEN d.next_at END AS next_at, d.ended_at
FROM gateway.deliveries d WHERE d.webhook_id = $1 ORDER BY d.id DESC LIMIT $2
"""


class WebhookBook:
    """Webhooks by name or id. Errors raised: Refused, NotFound, StoreUnavailable, NotMigrated.

    Answers are rows with id, name, url, tenant_id and tenant (both null: of every tenant),
    disabled_at, created_at, updated_at, and `waiting`, the deliveries that have yet to end.
    `secret` is in the answers of `create` and `rotate` alone.
    """

    def __init__(self, postgres: Postgres, actor: str, hosts: str) -> None:
        """`actor` is who the record names; `hosts` is the operator's allowlist, as set."""
        self._postgres = postgres
        self._actor = actor
        self._hosts = parse_hosts(hosts)

    async def create(self, name: str, url: str, tenant: str | None = None) -> Row:
        """Add a webhook for the notices of one tenant, or of all."""
        check_name(name, "webhook")
        check_url(url, self._hosts)
        secret = new_secret()
        try:
            row = await self._postgres.transact(self._create, name, url, tenant, secret)
        except Duplicate as error:
            raise Taken(f"there is a webhook named {name} already", "name") from error
        return {**row, "secret": secret}

    async def listing(self) -> list[Row]:
        """Return all webhooks by name."""
        return [dict(row) for row in await self._postgres.fetch(_LIST)]

    async def show(self, name: str, limit: int = 20) -> Row:
        """Return one webhook, with `deliveries`: its latest, the last first.

        Each has its state (waiting, delivered, given_up), attempts, the status of the last
        answer, or what kept one from coming, and when it is tried next or has ended.
        """
        return await self._postgres.run(self._show, name, limit)

    async def update(self, name: str, values: Mapping[str, Any]) -> Row:
        """Change some of COLUMNS: url, tenant (None: of every tenant), disabled (a bool)."""
        unknown = values.keys() - set(COLUMNS)
        if unknown:
            raise TypeError(f"not a column: {', '.join(sorted(unknown))}")
        if "url" in values:
            check_url(values["url"], self._hosts)
        return await self._postgres.transact(self._update, name, values)

    async def delete(self, name: str) -> Row:
        """Remove a webhook, with what it had yet to send."""
        return await self._postgres.transact(self._delete, name)

    async def rotate(self, name: str) -> Row:
        """Give the webhook a new secret, which signs from the next attempt on."""
        secret = new_secret()
        row = await self._postgres.transact(self._rotate, name, secret)
        return {**row, "secret": secret}

    async def test(self, name: str) -> Row:
        """Have a message of type `webhook.test` sent; returns the delivery's row.

        Its host must be on the allowlist, and the webhook not disabled.
        """
        return await self._postgres.transact(self._test, name)

    async def delivery(self, delivery_id: int) -> Row:
        """Return how far a delivery is: id, state, attempts, status_code and error."""
        row = await self._postgres.fetch_one(
            "SELECT id, state, attempts, status_code, error FROM gateway.deliveries WHERE id = $1",
            delivery_id,
        )
        if row is None:
            raise NotFound("there is no such delivery")
        return dict(row)

    async def _create(
        self, connection: Connection, name: str, url: str, tenant: str | None, secret: str
    ) -> Row:
        owner = None if tenant is None else (await find_tenant(connection, tenant))["id"]
        await connection.execute("SELECT pg_advisory_xact_lock(hashtext('gateway.webhooks'))")
        if await connection.fetchval("SELECT count(*) FROM gateway.webhooks") >= MOST:
            raise Refused(f"there are {MOST} webhooks already, which is the most")
        made = new_id("wh_")
        values = {"id": made, "name": name, "url": url, "tenant_id": owner, "secret": secret}
        await insert(connection, "webhooks", values)
        row = await _find(connection, made)
        await self._write(connection, "create", None, row)
        return row

    async def _show(self, connection: Connection, name: str, limit: int) -> Row:
        row = await _find(connection, name)
        deliveries = await connection.fetch(_DELIVERIES, row["id"], limit)
        return {**row, "deliveries": [dict(delivery) for delivery in deliveries]}

    async def _update(self, connection: Connection, name: str, values: Mapping[str, Any]) -> Row:
        before = await _find(connection, name, lock=True)
        changes: Row = {name: values[name] for name in ("url",) if name in values}
        if "tenant" in values:
            tenant = values["tenant"]
            found = None if tenant is None else (await find_tenant(connection, tenant))["id"]
            changes["tenant_id"] = found
        action = "update"
        if "disabled" in values and values["disabled"] is (before["disabled_at"] is None):
            at = await connection.fetchval("SELECT now()") if values["disabled"] else None
            changes["disabled_at"] = at
            action = "disable" if values["disabled"] else "enable"
        if not changes:
            return before
        await update(connection, "webhooks", before["id"], changes)
        after = await _find(connection, before["id"])
        await self._write(connection, action, before, after)
        return after

    async def _delete(self, connection: Connection, name: str) -> Row:
        row = await _find(connection, name, lock=True)
        await connection.execute("DELETE FROM gateway.webhooks WHERE id = $1", row["id"])
        await self._write(connection, "delete", row, None)
        return row

    async def _rotate(self, connection: Connection, name: str, secret: str) -> Row:
        before = await _find(connection, name, lock=True)
        await update(connection, "webhooks", before["id"], {"secret": secret})
        after = await _find(connection, before["id"])
        await self._write(connection, "rotate", before, after)
        return after

    async def _test(self, connection: Connection, name: str) -> Row:
        row = await _find(connection, name, lock=True)
        if row["disabled_at"] is not None:
            raise Unfit("the webhook is disabled; enable it first", "webhook")
        check_url(row["url"], self._hosts)
        delivery = await connection.fetchrow(
            "INSERT INTO gateway.deliveries (webhook_id) VALUES ($1)"
            " RETURNING id, message_id, state, attempts, status_code, error, created_at, next_at",
            row["id"],
        )
        await self._write(connection, "test", row, row)
        await connection.execute("SELECT pg_notify('gateway_changes', 'notice:test')")
        return dict(delivery or {})

    async def _write(
        self, connection: Connection, action: str, before: Row | None, after: Row | None
    ) -> None:
        subject = (after or before or {})["id"]
        event = (self._actor, f"webhook.{action}", subject)
        await write_event(connection, event, before, after)


async def _find(connection: Connection, name: str, *, lock: bool = False) -> Row:
    row = await connection.fetchrow(_FIND, storable(name))
    if row is None:
        raise NotFound(f"there is no webhook {printable(name)}", "webhook")
    if not lock:
        return dict(row)
    # Not FOR UPDATE, which a ledger row's notice would have to pass over; read again, as it may
    # have changed while this waited.
    await connection.execute(
        "SELECT FROM gateway.webhooks WHERE id = $1 FOR NO KEY UPDATE", row["id"]
    )
    return await _find(connection, row["id"])
