"""Admins: proving a token on the admin listener, and the book of who has one.

Each proof reads the row, so that a change holds from the next request on; only argon2 is spared
for a token that was proven against the very hash that the row has.
"""

from __future__ import annotations

import contextlib
import hmac
import math
import secrets
from collections import OrderedDict
from typing import TYPE_CHECKING, Any

import trio

from trio_gateway.clients.postgres import Duplicate
from trio_gateway.core.errors import StoreUnavailable
from trio_gateway.core.officers import (
    MOST_TOKEN,
    Officer,
    Role,
    lookup_of,
    new_token,
    sha256_hex,
)
from trio_gateway.services.account_rows import (
    Refused,
    Row,
    Taken,
    Unfit,
    insert,
    new_id,
    update,
    write_event,
)
from trio_gateway.services.admin_rows import LEGACY, find_admin, shown_admin
from trio_gateway.services.instants import check_end, check_instant
from trio_gateway.services.names import check_admin_name

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime

    from trio_gateway.clients.postgres import Connection, Postgres
    from trio_gateway.services.secrets import Secrets

MOST = 1000  # admins, so that each list has them all
PROVEN = 1000  # tokens remembered
SCRAPED = 100  # tokens remembered for the scrape,
SCRAPE_MEMORY = 300.0  # for so many seconds
SCRAPE_PATIENCE = 1.0  # seconds that a scrape waits for PostgreSQL,
PATIENCE = 3.0  # and anything else
_PROVE = """
SELECT * FROM gateway.admins WHERE lookup = $1 AND disabled_at IS NULL
    AND (expires_at IS NULL OR expires_at > now())
"""

_LIST = "SELECT * FROM gateway.admins ORDER BY name LIMIT $1"
COLUMNS = ("role", "expires_at")
_LEFT = """
SELECT count(*) FROM gateway.admins WHERE role = 'admin' AND disabled_at IS NULL
    AND (expires_at IS NULL OR expires_at > now())
"""


class Admins:
    """Proves tokens. Errors raised: StoreUnavailable, NotMigrated.

    `fixed` are tokens from the settings, which need no store.
    """

    def __init__(
        self, postgres: Postgres, hashing: Secrets, fixed: Mapping[str, tuple[str, Role]]
    ) -> None:
        """Take the tokens of the settings, each with the name and the role of its bearer."""
        self._postgres = postgres
        self._hashing = hashing
        self._fixed = {
            sha256_hex(token): Officer(name, role, f"admin:{lookup_of(token)}")
            for token, (name, role) in fixed.items()
        }
        self._secret = secrets.token_bytes(32)
        self._proven: OrderedDict[bytes, str] = OrderedDict()
        self._scraped: OrderedDict[bytes, tuple[float, Officer]] = OrderedDict()

    async def prove(self, token: str, limit: float = PATIENCE) -> Officer | None:
        """Return whose token it is; None for one that is not honored, for whatever reason.

        PostgreSQL has `limit` seconds to answer.
        """
        if not token or len(token) > MOST_TOKEN:
            return None
        digest = sha256_hex(token)
        for known, officer in self._fixed.items():
            if hmac.compare_digest(known, digest):
                return officer
        lookup = lookup_of(token)
        row = await self._postgres.glance(limit, _PROVE, lookup)
        if row is None or not await self._shown(row, token):
            return None
        return Officer(row["name"], Role(row["role"]), f"admin:{lookup}")

    async def prove_for_scrape(self, token: str) -> Officer | None:
        """As `prove`, but while PostgreSQL is away a proof of the last minutes will do.

        The scrape is what tells of the outage, and it shows nothing but numbers.
        """
        name = self._digest(token)
        with contextlib.suppress(StoreUnavailable):
            found = await self.prove(token, SCRAPE_PATIENCE)
            self._scraped.pop(name, None)
            if found is not None:
                self._scraped[name] = (trio.current_time(), found)
                if len(self._scraped) > SCRAPED:
                    self._scraped.popitem(last=False)
            return found
        at, known = self._scraped.get(name, (-math.inf, None))
        if known is None or trio.current_time() - at > SCRAPE_MEMORY:
            raise StoreUnavailable
        return known

    def _digest(self, token: str) -> bytes:
        return hmac.digest(self._secret, token.encode(), "sha256")

    async def stands(self, credential: str) -> Role | None:
        """Return the role that a session's credential gives now; None where it gives none."""
        lookup = credential.removeprefix("admin:")
        for officer in self._fixed.values():
            if officer.credential == credential:
                return officer.role
        row = await self._postgres.glance(PATIENCE, _PROVE, lookup)
        return None if row is None else Role(row["role"])

    async def _shown(self, row: Any, token: str) -> bool:
        name = self._digest(token)
        encoded = row["hash"]
        if self._proven.get(name) == encoded:
            self._proven.move_to_end(name)
            return True
        if encoded.startswith(LEGACY):
            if not hmac.compare_digest(encoded, LEGACY + sha256_hex(token)):
                return False
            encoded = await self._rehash(row["id"], encoded, token)
        elif not await self._hashing.verify(encoded, token):
            return False
        elif self._hashing.outdated(encoded):
            encoded = await self._rehash(row["id"], encoded, token)
        self._proven[name] = encoded
        while len(self._proven) > PROVEN:
            self._proven.popitem(last=False)
        return True

    async def _rehash(self, admin_id: str, known: str, token: str) -> str:
        encoded = await self._hashing.hash(token)
        await self._postgres.fetch(
            "UPDATE gateway.admins SET hash = $3 WHERE id = $1 AND hash = $2",
            admin_id,
            known,
            encoded,
        )
        return encoded


class AdminBook:
    """The book of admins; each change and its record are one transaction.

    Errors raised: Refused, NotFound, StoreUnavailable, NotMigrated. Answers are rows as dicts
    with the columns of `gateway.admins` but its hash and lookup, and `state`.
    """

    def __init__(
        self, postgres: Postgres, actor: str, hashing: Secrets, *, keep_last: bool = False
    ) -> None:
        """Record under `actor`; `keep_last` refuses what would leave no admin who may change.

        Whoever has the command line can make another admin, and needs no such care.
        """
        self._postgres = postgres
        self._actor = actor
        self._hashing = hashing
        self._keep_last = keep_last

    async def create(self, name: str, role: str, expires_at: datetime | None = None) -> Row:
        """Add an admin; `token` in the answer is seen this once."""
        check_admin_name(name)
        _check_role(role)
        check_end(expires_at, "expires_at")
        token = new_token()
        encoded = await self._hashing.hash(token)
        values = {
            "id": new_id("adm_"),
            "name": name,
            "role": role,
            "lookup": lookup_of(token),
            "hash": encoded,
            "expires_at": expires_at,
        }
        try:
            row = await self._postgres.transact(self._create, values)
        except Duplicate as error:
            raise Taken(f"there is an admin named {name} already", "name") from error
        return {**row, "token": token}

    async def listing(self) -> list[Row]:
        """Return all admins by name."""
        rows = await self._postgres.fetch(_LIST, MOST)
        return [shown_admin(dict(row)) for row in rows]

    async def show(self, name: str) -> Row:
        """Return one admin."""
        return await self._postgres.run(find_admin, name)

    async def rotate(self, name: str) -> Row:
        """Give an admin a new token; the old one, and its sessions, end at once.

        One whose time is over is refused: the new token would be dead as well.
        """
        token = new_token()
        encoded = await self._hashing.hash(token)
        values = {"lookup": lookup_of(token), "hash": encoded}
        row = await self._postgres.transact(self._rotate, name, values)
        return {**row, "token": token}

    async def assign(self, name: str, role: str) -> Row:
        """Change an admin's role; it holds from the next request on."""
        return await self.update(name, {"role": role})

    async def update(self, name: str, values: Mapping[str, Any]) -> Row:
        """Change some of COLUMNS; it holds from the next request on.

        Another role ends the sessions. An expiry in the past ends the token now.
        """
        unknown = values.keys() - set(COLUMNS)
        if unknown:
            raise TypeError(f"not a column: {', '.join(sorted(unknown))}")
        if "role" in values:
            _check_role(values["role"])
        check_instant(values.get("expires_at"), "expires_at")
        action = "admin.assign" if values.keys() == {"role"} else "admin.update"
        return await self._postgres.transact(self._update, name, action, values)

    async def disable(self, name: str) -> Row:
        """Refuse an admin's token and end the sessions."""
        return await self._postgres.transact(self._switch, name, "admin.disable")

    async def enable(self, name: str) -> Row:
        """Undo `disable`."""
        return await self._postgres.transact(self._switch, name, "admin.enable")

    async def delete(self, name: str) -> Row:
        """Remove an admin and end the sessions."""
        return await self._postgres.transact(self._delete, name)

    async def _create(self, connection: Connection, values: Row) -> Row:
        if await connection.fetchval("SELECT count(*) FROM gateway.admins") >= MOST:
            raise Unfit(f"there are {MOST} admins already; delete those that are over")
        await insert(connection, "admins", values)
        row = await find_admin(connection, values["id"])
        await self._write(connection, "admin.create", None, row)
        return row

    async def _update(
        self, connection: Connection, name: str, action: str, values: Mapping[str, Any]
    ) -> Row:
        before = await find_admin(connection, name, lock=True)
        if values.keys() != {"expires_at"}:
            await self._end_sessions(connection, before["id"])
        await update(connection, "admins", before["id"], values)
        await self._check_left(connection, before)
        after = await find_admin(connection, before["id"])
        await self._write(connection, action, before, after)
        return after

    async def _rotate(self, connection: Connection, name: str, values: Row) -> Row:
        row = await find_admin(connection, name, lock=True)
        if row["state"] == "expired":
            raise Unfit("the admin has expired; give it another expiry first", "admin")
        return await self._update(connection, row["id"], "admin.rotate", values)

    async def _switch(self, connection: Connection, name: str, action: str) -> Row:
        off = action == "admin.disable"
        row = await find_admin(connection, name, lock=True)
        if (row["disabled_at"] is not None) is off:
            return row
        at = await connection.fetchval("SELECT now()") if off else None
        return await self._update(connection, row["id"], action, {"disabled_at": at})

    async def _delete(self, connection: Connection, name: str) -> Row:
        row = await find_admin(connection, name, lock=True)
        await self._end_sessions(connection, row["id"])
        await connection.execute("DELETE FROM gateway.admins WHERE id = $1", row["id"])
        await self._check_left(connection, row)
        await self._write(connection, "admin.delete", row, None)
        return row

    async def _check_left(self, connection: Connection, before: Row) -> None:
        """Raise Unfit where nobody is left; two who go at once wait for each other."""
        if not self._keep_last or before["role"] != Role.ADMIN or before["state"] != "active":
            return
        await connection.execute("SELECT pg_advisory_xact_lock(hashtext('gateway.admins'))")
        if not await connection.fetchval(_LEFT):
            raise Unfit(
                "this is the last active admin; make another first, or use the command line"
            )

    async def _end_sessions(self, connection: Connection, admin_id: str) -> None:
        await connection.execute(
            "DELETE FROM gateway.admin_sessions s USING gateway.admins a"
            " WHERE a.id = $1 AND s.credential = 'admin:' || a.lookup",
            admin_id,
        )

    async def _write(
        self, connection: Connection, action: str, before: Row | None, after: Row | None
    ) -> None:
        subject = (after or before or {})["id"]
        await write_event(connection, (self._actor, action, subject), before, after)


def _check_role(role: str) -> None:
    if role not in set(Role):
        raise Refused("must be admin, viewer or metrics", "role")
