"""The operator's book of keys: issue, rotate, revoke; each change and its record are one."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from trio_gateway.core.keys import last4, new_key, parse_key
from trio_gateway.services.account_rows import (
    NotFound,
    Refused,
    Row,
    Unfit,
    check_narrows,
    check_seen,
    check_values,
    find_tenant,
    insert,
    new_id,
    pick,
    shown,
    spent,
    storable,
    update,
    write_event,
)
from trio_gateway.services.budgets import notice_change
from trio_gateway.services.extensions import ENDED, extension
from trio_gateway.services.instants import check_end, check_instant
from trio_gateway.services.key_rows import SELECT, page
from trio_gateway.services.names import check_key_name
from trio_gateway.services.secrets import Secrets
from trio_gateway.services.tenant_rows import LIMITS

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import timedelta

    from trio_gateway.clients.postgres import Connection, Postgres
    from trio_gateway.core.keys import NewKey

COLUMNS = ("name", "models", "expires_at", *LIMITS)
_BY_ID = SELECT + "WHERE k.id = $1 OR k.public_id = $1 OR k.previous_public_id = $1"
_BY_NAME = SELECT + (
    "WHERE k.name = $1 AND ($2::text IS NULL OR k.tenant_id = $2) ORDER BY k.created_at LIMIT 50"
)


class Keyring:
    """Keys by id, public id, name or whole text; a name may need its tenant beside it.

    Errors raised: Refused, NotFound, StoreUnavailable, NotMigrated. Answers are rows as dicts
    with the columns of `gateway.api_keys` but its hashes, and `tenant`, `state`, `revoked_at`.
    """

    def __init__(
        self,
        postgres: Postgres,
        installation_secret: bytes,
        actor: str,
        hashing: Secrets | None = None,
    ) -> None:
        """`actor` is who the record names."""
        self._postgres = postgres
        self._installation_secret = installation_secret
        self._actor = actor
        self._hashing = hashing or Secrets()

    async def issue(self, tenant: str, values: Mapping[str, Any]) -> Row:
        """Make a key; `values` holds some of COLUMNS. `key` in the answer is seen this once."""
        _check(values)
        check_end(values.get("expires_at"), "expires_at")
        key = new_key(self._installation_secret)
        encoded = await self._hashing.hash(key.secret)
        row = await self._postgres.transact(self._issue, tenant, key, encoded, values)
        return {**row, "key": key.text}

    async def listing(
        self,
        tenant: str | None = None,
        match: str = "",
        limit: int = 1000,
        after: str | None = None,
    ) -> list[Row]:
        """Return keys by tenant and age, those alone whose name contains `match`.

        `after` is the id of the key that the last page ended with.
        """
        return await self._postgres.run(self._list, tenant, match, limit, after)

    async def show(self, name: str, tenant: str | None = None) -> Row:
        """Return one key, with `spent` of its present budget period."""
        return await self._postgres.run(self._show, name, tenant)

    async def update(
        self,
        name: str,
        values: Mapping[str, Any],
        tenant: str | None = None,
        seen: Mapping[str, Any] | None = None,
    ) -> Row:
        """Change some of COLUMNS; of a revoked key the name alone can be.

        An expiry in the past ends the key now. `seen` holds columns as whoever changes them saw
        them; see `check_seen`.
        """
        _check(values)
        return await self._postgres.transact(self._update, name, tenant, "key.update", values, seen)

    async def extend(
        self, name: str, tokens: int, until: datetime | timedelta, tenant: str | None = None
    ) -> Row:
        """Add tokens to the key's budget until an instant, or for a while.

        `effective_budget` in the answer is the sum; its tenant's budget still counts beside it.
        An earlier increase is replaced.
        """
        return await self._postgres.transact(self._extend, (name, tenant), tokens, until)

    async def end_extension(self, name: str, tenant: str | None = None) -> Row:
        """End an increase now; without one it is no error."""
        return await self._postgres.transact(self._end_extension, name, tenant)

    async def disable(self, name: str, tenant: str | None = None) -> Row:
        """Refuse the key from now on, and cut its calls in flight."""
        return await self._postgres.transact(self._switch, name, tenant, "key.disable")

    async def enable(self, name: str, tenant: str | None = None) -> Row:
        """Undo `disable`; a revoked key is refused."""
        return await self._postgres.transact(self._switch, name, tenant, "key.enable")

    async def revoke(self, name: str, tenant: str | None = None, reason: str = "") -> Row:
        """Refuse the key for good, and cut its calls in flight; again is no error."""
        return await self._postgres.transact(self._revoke, name, tenant, storable(reason))

    async def rotate(self, name: str, overlap: timedelta, tenant: str | None = None) -> Row:
        """Give the key a new public id and secret; the replaced ones work for `overlap` more.

        Id, limits and counters stay. Whatever an earlier rotation replaced ends at once. A key
        that is over is refused: so would be its new secret.
        """
        key = new_key(self._installation_secret)
        encoded = await self._hashing.hash(key.secret)
        row = await self._postgres.transact(self._rotate, (name, tenant), key, encoded, overlap)
        return {**row, "key": key.text}

    async def _issue(
        self, connection: Connection, tenant: str, key: NewKey, encoded: str, values: Row
    ) -> Row:
        owner = await find_tenant(connection, tenant, lock=True)
        await _check_no_public_id(connection, values)
        key_id = new_id("key_")
        check_narrows(_changed({"budget": None, "budget_period": "month"}, values), owner)
        made = {"id": key_id, "tenant_id": owner["id"], **_secret(key, encoded), **values}
        await insert(connection, "api_keys", made)
        row = await self._find(connection, key_id)
        await self._write(connection, "key.create", None, row)
        return row

    async def _list(
        self,
        connection: Connection,
        tenant: str | None,
        match: str,
        limit: int,
        after: str | None,
    ) -> list[Row]:
        owner = None if tenant is None else (await find_tenant(connection, tenant))["id"]
        return await page(connection, owner, match, limit, after)

    async def _show(self, connection: Connection, name: str, tenant: str | None) -> Row:
        row = await self._find(connection, name, tenant)
        return {**row, "spent": await spent(connection, f"k:{row['id']}", row["budget_period"])}

    async def _update(
        self,
        connection: Connection,
        name: str,
        tenant: str | None,
        action: str,
        values: Mapping[str, Any],
        seen: Mapping[str, Any] | None = None,
    ) -> Row:
        before = await self._find(connection, name, tenant, lock=True)
        check_seen(before, seen or {}, values)
        if values.keys() != {"name"}:
            _check_usable(before)
        await _check_no_public_id(connection, values)
        owner = await find_tenant(connection, before["tenant_id"])
        check_narrows(_changed(before, values), owner)
        await update(connection, "api_keys", before["id"], values)
        await notice_change(connection, f"k:{before['id']}", values)
        after = await self._find(connection, before["id"])
        await self._write(connection, action, before, after)
        return after

    async def _extend(
        self,
        connection: Connection,
        whose: tuple[str, str | None],
        tokens: int,
        until: datetime | timedelta,
    ) -> Row:
        row = await self._find(connection, *whose, lock=True)
        values = await extension(connection, row, tokens, until)
        return await self._update(connection, row["id"], None, "key.extend", values)

    async def _end_extension(self, connection: Connection, name: str, tenant: str | None) -> Row:
        row = await self._find(connection, name, tenant, lock=True)
        if row["budget_extra"] is None:
            return row
        return await self._update(connection, row["id"], None, "key.end_extension", ENDED)

    async def _switch(
        self, connection: Connection, name: str, tenant: str | None, action: str
    ) -> Row:
        off = action == "key.disable"
        row = await self._find(connection, name, tenant, lock=True)
        _check_usable(row)
        if (row["disabled_at"] is not None) is off:
            return row
        at = await connection.fetchval("SELECT now()") if off else None
        return await self._update(connection, row["id"], None, action, {"disabled_at": at})

    async def _revoke(
        self, connection: Connection, name: str, tenant: str | None, reason: str
    ) -> Row:
        before = await self._find(connection, name, tenant, lock=True)
        if before["revoked_at"] is not None:
            return before
        await insert(connection, "revocations", {"key_id": before["id"], "reason": reason})
        after = await self._find(connection, before["id"])
        await self._write(connection, "key.revoke", before, {**after, "reason": reason})
        return after

    async def _rotate(
        self,
        connection: Connection,
        whose: tuple[str, str | None],
        key: NewKey,
        encoded: str,
        overlap: timedelta,
    ) -> Row:
        before = await self._find(connection, *whose, lock=True)
        _check_usable(before)
        if before["expires_at"] is not None and before["expires_at"] <= datetime.now(UTC):
            raise Unfit("the key has expired; give it another expiry first", "key")
        replaced: Row = dict.fromkeys(
            ("previous_public_id", "previous_hash", "previous_expires_at")
        )
        if overlap:
            replaced = {
                "previous_public_id": before["public_id"],
                "previous_hash": await connection.fetchval(
                    "SELECT hash FROM gateway.api_keys WHERE id = $1", before["id"]
                ),
                "previous_expires_at": await connection.fetchval("SELECT now() + $1", overlap),
            }
        await update(connection, "api_keys", before["id"], replaced | _secret(key, encoded))
        after = await self._find(connection, before["id"])
        await self._write(connection, "key.rotate", before, after)
        return after

    async def _find(
        self, connection: Connection, name: str, tenant: str | None = None, *, lock: bool = False
    ) -> Row:
        owner = None if tenant is None else (await find_tenant(connection, tenant))["id"]
        if not name:
            raise NotFound("a key is named by its id, its public id or its name", "key")
        whole = parse_key(name, self._installation_secret)
        name = whole.public_id if whole else storable(name)
        rows = await connection.fetch(_BY_ID, name)
        rows = [row for row in rows if owner in {None, row["tenant_id"]}]
        rows = rows or await connection.fetch(_BY_NAME, name, owner)
        row = pick([shown(dict(row)) for row in rows], name, "key")
        if not lock:
            return row
        # Read again: it may have changed while this waited for the lock.
        await connection.execute("SELECT FROM gateway.api_keys WHERE id = $1 FOR UPDATE", row["id"])
        return await self._find(connection, row["id"])

    async def _write(
        self, connection: Connection, action: str, before: Row | None, after: Row
    ) -> None:
        await write_event(connection, (self._actor, action, after["id"]), before, after)


def _check(values: Mapping[str, Any]) -> None:
    check_values(values, COLUMNS)
    check_instant(values.get("expires_at"), "expires_at")
    check_key_name(values.get("name", ""))


async def _check_no_public_id(connection: Connection, values: Mapping[str, Any]) -> None:
    """Raise Refused for a name that means another key already, as public ids are accepted too."""
    if values.get("name") and await connection.fetch(_BY_ID, values["name"]):
        raise Refused("a name must not be the public id of a key", "name")


def _check_usable(row: Mapping[str, Any]) -> None:
    """Raise Unfit for a key that is revoked: nothing brings it back."""
    if row["revoked_at"] is not None:
        raise Unfit("the key is revoked; create another", "key")


def _secret(key: NewKey, encoded: str) -> Row:
    return {"public_id": key.public_id, "hash": encoded, "last4": last4(key.text)}


def _changed(before: Mapping[str, Any], values: Mapping[str, Any]) -> Row:
    """Return a key of the changed values alone: a tenant narrowed later is no fault of theirs."""
    key: Row = dict.fromkeys(("models", *LIMITS)) | {"budget_period": before["budget_period"]}
    if "budget_period" in values:
        key["budget"] = before["budget"]
    return key | dict(values)
