"""Rows of keys as operators see them, and pages of them, however many there are."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from trio_gateway.services.account_rows import Refused, shown, storable

if TYPE_CHECKING:
    from collections.abc import Sequence

    from trio_gateway.clients.postgres import Connection
    from trio_gateway.services.account_rows import Row

SELECT = """
SELECT k.*, gateway.effective_budget(k.budget, k.budget_extra, k.budget_extra_until)
        AS effective_budget, t.name AS tenant,
    (SELECT min(r.revoked_at) FROM gateway.revocations r WHERE r.key_id = k.id) AS revoked_at,
    CASE WHEN EXISTS (SELECT FROM gateway.revocations r WHERE r.key_id = k.id) THEN 'revoked'
         WHEN k.disabled_at IS NOT NULL OR t.disabled_at IS NOT NULL THEN 'disabled'
         WHEN k.expires_at <= now() THEN 'expired' ELSE 'active' END AS state
FROM gateway.api_keys k JOIN gateway.tenants t ON t.id = k.tenant_id
"""
_AFTER = """
SELECT t.name, k.created_at, k.id FROM gateway.api_keys k
JOIN gateway.tenants t ON t.id = k.tenant_id WHERE k.id = $1
"""
# Each tenant's keys come off the index by age, so that a page costs a page.
_PAGE = """
SELECT k.id FROM gateway.tenants t CROSS JOIN LATERAL (
    SELECT k.id, k.created_at FROM gateway.api_keys k
    WHERE k.tenant_id = t.id AND (strpos(lower(k.name), lower($2)) > 0 OR $2 = '')
        AND (k.created_at, k.id) > (
            CASE WHEN t.name = $4 THEN $5::timestamptz ELSE '-infinity' END,
            CASE WHEN t.name = $4 THEN $6::text ELSE '' END)
    ORDER BY k.created_at, k.id LIMIT $3
) k WHERE {whose} ORDER BY t.name, k.created_at, k.id LIMIT $3
"""
_PAGES = {
    True: _PAGE.format(whose="t.id = $1"),
    False: _PAGE.format(whose="$1::text IS NULL AND t.name >= $4"),
}
_ROWS = SELECT + "WHERE k.id = ANY($1::text[]) ORDER BY t.name, k.created_at, k.id"


async def page(
    connection: Connection, owner: str | None, match: str, limit: int, after: str | None
) -> list[Row]:
    """Return keys by tenant and age, of one tenant's id or of all; an asyncio function.

    `after` is the id of the key that the last page ended with. Raises Refused where it is none.
    """
    start: Sequence[Any] = ("", None, "")
    if after is not None:
        found = await connection.fetchrow(_AFTER, storable(after))
        if found is None:
            raise Refused("the list cannot go on after a key that is gone; begin again", "after")
        start = tuple(found)
    ids = await connection.fetch(_PAGES[owner is not None], owner, storable(match), limit, *start)
    rows = await connection.fetch(_ROWS, [row["id"] for row in ids])
    return [shown(dict(row)) for row in rows]
