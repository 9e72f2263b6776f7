"""Keys of all tenants, found by what people know of them, or listed by what became of them.

Each list is read off an index in its own order, so that a page costs a page. The one exception
are keys that are in use: it passes over those that are not, the newest first.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from trio_gateway.services.account_rows import Refused, shown, storable
from trio_gateway.services.key_rows import SELECT

if TYPE_CHECKING:
    from datetime import datetime

    from trio_gateway.clients.postgres import Connection, Postgres
    from trio_gateway.services.account_rows import Row

Place = tuple["datetime", str]  # `listed_at` and id of a key

SOON = "14 days"  # until a key expires
LEAST = 4  # characters of a public id that say anything
MOST_BY_ID = 100  # keys whose public id begins alike
LAST = "\U0010ffff"  # follows whatever begins with a text

_UNREVOKED = "NOT EXISTS (SELECT FROM gateway.revocations r WHERE r.key_id = k.id)"
_ENABLED = "k.disabled_at IS NULL AND t.disabled_at IS NULL"
_KEYS = """
SELECT k.id, k.{at} AS at FROM gateway.api_keys k JOIN gateway.tenants t ON t.id = k.tenant_id
WHERE {tests} AND (k.{at}, k.id) {beyond} (coalesce($1::timestamptz, '{start}'), $2)
ORDER BY k.{at} {way}, k.id {way} LIMIT $3
"""
_LATEST = {"beyond": "<", "way": "DESC", "start": "infinity"}
# A key is disabled by itself, or with its tenant, and then from the same instant as its siblings.
_DISABLED = f"""
SELECT id, at FROM (
    (SELECT k.id, k.disabled_at AS at FROM gateway.api_keys k
     WHERE k.disabled_at IS NOT NULL AND {_UNREVOKED}
        AND (k.disabled_at, k.id) < (coalesce($1::timestamptz, 'infinity'), $2)
     ORDER BY k.disabled_at DESC, k.id DESC LIMIT $3)
    UNION ALL
    (SELECT k.id, t.disabled_at FROM gateway.tenants t CROSS JOIN LATERAL (
        SELECT k.id FROM gateway.api_keys k
        WHERE k.tenant_id = t.id AND k.disabled_at IS NULL AND {_UNREVOKED}
            AND (t.disabled_at, k.id) < (coalesce($1, 'infinity'), $2)
        ORDER BY k.id DESC LIMIT $3
     ) k WHERE t.disabled_at IS NOT NULL AND t.disabled_at <= coalesce($1, 'infinity')
     ORDER BY t.disabled_at DESC, k.id DESC LIMIT $3)
) AS found ORDER BY at DESC, id DESC LIMIT $3
"""  # noqa: S608 - constants alone
_REVOKED = """
SELECT r.key_id AS id, r.revoked_at AS at FROM gateway.revocations r
WHERE (r.revoked_at, r.key_id) < (coalesce($1::timestamptz, 'infinity'), $2)
    AND NOT EXISTS (SELECT FROM gateway.revocations e
        WHERE e.key_id = r.key_id AND (e.revoked_at, e.id) < (r.revoked_at, r.id))
ORDER BY r.revoked_at DESC, r.key_id DESC LIMIT $3
"""
_STANDING = f"{_UNREVOKED} AND {_ENABLED}"
_LISTS = {
    "": _KEYS.format(tests="true", at="created_at", **_LATEST),
    "active": _KEYS.format(
        tests=f"{_STANDING} AND (k.expires_at IS NULL OR k.expires_at > now())",
        at="created_at",
        **_LATEST,
    ),
    "expiring": _KEYS.format(
        tests=f"{_STANDING} AND k.expires_at > now() AND k.expires_at <= now() + interval '{SOON}'",
        at="expires_at",
        beyond=">",
        way="ASC",
        start="-infinity",
    ),
    "expired": _KEYS.format(
        tests=f"{_STANDING} AND k.expires_at <= now()", at="expires_at", **_LATEST
    ),
    "disabled": _DISABLED,
    "revoked": _REVOKED,
}
LISTS = tuple(_LISTS)
_AFTER = 'SELECT lower(name) COLLATE "C" AS name, id FROM gateway.api_keys WHERE id = $1'
_NAME = 'lower(k.name) COLLATE "C"'
# What begins with a text lies between it and the text before $2, which follows all there is.
_FOUND = f"""
SELECT id FROM (
    (SELECT k.id, {_NAME} AS name FROM gateway.api_keys k
     WHERE {_NAME} >= lower($1::text) AND {_NAME} < lower($1::text) || $2::text
        AND ({_NAME}, k.id) > ($3, $4)
     ORDER BY {_NAME}, k.id LIMIT $6)
    UNION
    (SELECT k.id, {_NAME} FROM gateway.api_keys k
     WHERE k.public_id COLLATE "C" >= $5 AND k.public_id COLLATE "C" < $5 || $2::text
        AND ({_NAME}, k.id) > ($3, $4) LIMIT {MOST_BY_ID})
    UNION
    (SELECT k.id, {_NAME} FROM gateway.api_keys k
     WHERE (k.id = $1 OR k.previous_public_id = $1) AND ({_NAME}, k.id) > ($3, $4))
) AS found ORDER BY name COLLATE "C", id LIMIT $6
"""  # noqa: S608 - constants alone
_ROWS = SELECT + "WHERE k.id = ANY($1::text[])"


class KeySearch:
    """Answers are rows as those of Keyring, each with `listed_at`, which its list goes by.

    Errors raised: Refused, StoreUnavailable, NotMigrated.
    """

    def __init__(self, postgres: Postgres) -> None:
        """Nothing is read yet."""
        self._postgres = postgres

    async def listing(self, state: str, limit: int, after: Place | None = None) -> list[Row]:
        """Return keys of one of LISTS: when they were made, expire or expired, or were ended.

        `expiring` is within SOON, the next one first; in all others the latest is the first.
        `after` is the place of the key that the last page ended with.
        """
        return await self._postgres.run(_listing, _LISTS[state], limit, after)

    async def find(self, text: str, limit: int, after: str | None = None) -> list[Row]:
        """Return keys by name whose name or public id begins with a text, or whose id it is.

        `after` is the id of the key that the last page ended with.
        """
        return await self._postgres.run(_find, storable(text), limit, after)


async def _listing(
    connection: Connection, query: str, limit: int, after: Place | None
) -> list[Row]:
    at, key_id = after or (None, "")
    found = await connection.fetch(query, at, storable(key_id), limit)
    rows = await _rows(connection, [row["id"] for row in found])
    listed = {row["id"]: row["at"] for row in found}
    return [{**row, "listed_at": listed[row["id"]]} for row in rows]


async def _find(connection: Connection, text: str, limit: int, after: str | None) -> list[Row]:
    start: Any = ("", "")
    if after is not None:
        start = await connection.fetchrow(_AFTER, storable(after))
        if start is None:
            raise Refused("the list cannot go on after a key that is gone; begin again", "after")
    public = text if len(text) >= LEAST else LAST
    found = await connection.fetch(_FOUND, text, LAST, *start, public, limit)
    return await _rows(connection, [row["id"] for row in found])


async def _rows(connection: Connection, ids: list[str]) -> list[Row]:
    """Return the rows in the order of their ids."""
    rows = {row["id"]: shown(dict(row)) for row in await connection.fetch(_ROWS, ids)}
    return [rows[key_id] for key_id in ids if key_id in rows]
