"""Names of what records and batches know by its id."""

from __future__ import annotations

from typing import TYPE_CHECKING

from trio_gateway.web.admin.office import office

if TYPE_CHECKING:
    from collections.abc import Collection

_NAMES = """
SELECT id, name FROM gateway.tenants WHERE id = ANY($1::text[])
UNION ALL SELECT id, name FROM gateway.api_keys WHERE id = ANY($1::text[]) AND name <> ''
UNION ALL SELECT id, name FROM gateway.admins WHERE id = ANY($1::text[])
UNION ALL SELECT id, name FROM gateway.webhooks WHERE id = ANY($1::text[])
"""
_DELETED = """
SELECT DISTINCT ON (subject) subject, before ->> 'name' AS name FROM gateway.admin_events
WHERE subject = ANY($1::text[]) AND action = 'tenant.delete' ORDER BY subject, id DESC
"""


async def names_of(ids: Collection[str]) -> dict[str, str]:
    """Return the names of those tenants, keys, admins and webhooks that are there and have one."""
    if not ids:
        return {}
    return {row["id"]: row["name"] for row in await office().postgres.fetch(_NAMES, list(ids))}


async def names_of_deleted(ids: Collection[str]) -> dict[str, str]:
    """Return the names that deleted tenants had, as the record has them."""
    if not ids:
        return {}
    rows = await office().postgres.fetch(_DELETED, list(ids))
    return {row["subject"]: row["name"] for row in rows if row["name"]}
