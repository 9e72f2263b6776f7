"""Sessions of the dashboard: short, kept in PostgreSQL, ended from outside at any time.

The cookie holds a random secret of which the table has the SHA-256 alone. A session rests on a
credential: with the token that it was opened by, it ends.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Protocol

from trio_gateway.core.officers import Officer, Role, sha256_hex
from trio_gateway.services.account_rows import NotFound, storable, write_event

if TYPE_CHECKING:
    from collections.abc import Collection

    from trio_gateway.clients.postgres import Connection, Postgres

LONGEST = timedelta(hours=8)
MOST = 50  # sessions of one credential; the oldest end
_OPEN = """
WITH gone AS (
    DELETE FROM gateway.admin_sessions WHERE expires_at <= now() OR seen_at <= now() - $8::interval
), surplus AS (
    DELETE FROM gateway.admin_sessions WHERE id IN (
        SELECT id FROM gateway.admin_sessions WHERE credential = $2
        ORDER BY created_at DESC OFFSET $9)
)
INSERT INTO gateway.admin_sessions (id, credential, name, role, csrf, client, expires_at)
VALUES ($1, $2, $3, $4, $5, $6, now() + $7::interval)
"""
_FIND = """
UPDATE gateway.admin_sessions SET seen_at = now()
WHERE id = $1 AND expires_at > now() AND seen_at > now() - $2::interval
RETURNING credential, name, role, csrf
"""
_LOOK = """
SELECT credential, name, role, csrf FROM gateway.admin_sessions
WHERE id = $1 AND expires_at > now() AND seen_at > now() - $2::interval
"""
_ALIVE = """
SELECT id, credential FROM gateway.admin_sessions
WHERE id = ANY($1::text[]) AND expires_at > now() AND seen_at > now() - $2::interval
"""
_LIST = """
SELECT id, name, role, credential, client, created_at, seen_at, expires_at
FROM gateway.admin_sessions WHERE expires_at > now() AND seen_at > now() - $1::interval
ORDER BY seen_at DESC LIMIT $2
"""


class Standing(Protocol):
    """Whoever knows what a credential is worth now."""

    async def stands(self, credential: str) -> Role | None:
        """Return its role, None where it is not honored any more."""


@dataclass(frozen=True, slots=True)
class Session:
    """One session: who it is of, and the token that every form has to carry."""

    officer: Officer
    csrf: str = field(repr=False)
    id: str = field(repr=False)


class Sessions:
    """Errors raised: StoreUnavailable, NotMigrated."""

    def __init__(
        self, postgres: Postgres, standing: Standing, idle: float, *, outsiders: bool = False
    ) -> None:
        """`idle` is how long a session may rest, in seconds.

        `outsiders`: whether those who were proven by an OpenID provider are honored at all.
        """
        self._outsiders = outsiders
        self._postgres = postgres
        self._standing = standing
        self._idle = timedelta(seconds=idle)

    async def open(self, officer: Officer, client: str | None) -> str:
        """Begin a session and return the cookie's secret."""
        secret = secrets.token_urlsafe(32)
        await self._postgres.fetch(
            _OPEN,
            sha256_hex(secret),
            officer.credential,
            officer.name,
            officer.role,
            secrets.token_urlsafe(32),
            client,
            LONGEST,
            self._idle,
            MOST - 1,
        )
        return secret

    async def find(self, secret: str, *, seen: bool = True) -> Session | None:
        """Return the session behind a cookie, None where it is over.

        It counts as seen, unless nobody but a script that renews a page has asked.
        """
        session_id = sha256_hex(secret)
        row = await self._postgres.fetch_one(_FIND if seen else _LOOK, session_id, self._idle)
        if row is None:
            return None
        role = await self._worth(row["credential"], Role(row["role"]))
        if role is None or role is Role.METRICS:
            await self.end(session_id)
            return None
        officer = Officer(row["name"], role, row["credential"])
        return Session(officer, row["csrf"], session_id)

    async def alive(self, session_ids: Collection[str]) -> frozenset[str]:
        """Return those that are not over; they do not count as seen by that."""
        if not session_ids:
            return frozenset()
        rows = await self._postgres.fetch(_ALIVE, list(session_ids), self._idle)
        worth = {
            credential: await self._worth(credential, Role.VIEWER)
            for credential in {row["credential"] for row in rows}
        }
        lost = {name for name, role in worth.items() if role in {None, Role.METRICS}}
        return frozenset(row["id"] for row in rows if row["credential"] not in lost)

    async def _worth(self, credential: str, role: Role) -> Role | None:
        """Return the role that a credential gives now; a provider's word was for the login."""
        if credential.startswith("admin:"):
            return await self._standing.stands(credential)
        return role if self._outsiders else None

    async def listing(self, limit: int = 200) -> list[dict[str, Any]]:
        """Return the sessions that are not over, those seen last first; never their secrets."""
        return [dict(row) for row in await self._postgres.fetch(_LIST, self._idle, limit)]

    async def end(self, session_id: str) -> None:
        """End one session."""
        await self._postgres.fetch("DELETE FROM gateway.admin_sessions WHERE id = $1", session_id)

    async def revoke(self, session_id: str, actor: str) -> dict[str, Any]:
        """End somebody's session, on record, and return what it was; raises NotFound."""
        return await self._postgres.transact(_revoke, session_id, actor)

    async def end_all(self, credential: str, sparing: Role | None = None) -> None:
        """End every session of a credential, but those with this role."""
        await self._postgres.fetch(
            "DELETE FROM gateway.admin_sessions WHERE credential = $1 AND role IS DISTINCT FROM $2",
            credential,
            sparing,
        )


async def _revoke(connection: Connection, session_id: str, actor: str) -> dict[str, Any]:
    row = await connection.fetchrow(
        "DELETE FROM gateway.admin_sessions WHERE id = $1 RETURNING name, role, client, created_at",
        storable(session_id),
    )
    if row is None:
        raise NotFound("there is no such session", "session")
    await write_event(connection, (actor, "session.end", row["name"]), dict(row), None)
    return dict(row)
