"""Names of tenants by their ids, for lists of what is theirs."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Collection

    from trio_gateway.clients.postgres import Reads

_NAMES = "SELECT id, name FROM gateway.tenants WHERE id = ANY($1::text[])"


async def tenant_names(reads: Reads, ids: Collection[str]) -> dict[str, str]:
    """Return the names of those that are there. Raises StoreUnavailable."""
    rows = await reads.fetch(_NAMES, list(ids))
    return {row["id"]: row["name"] for row in rows}
