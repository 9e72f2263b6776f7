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


async def names_of(ids: Collection[str]) -> dict[str, str]:
    """Return the names of those tenants, keys, admins and webhooks that are there and have one."""
    if not ids:
        return {}
    return {row["id"]: row["name"] for row in await office().postgres.fetch(_NAMES, list(ids))}
