"""Rows of `gateway.admins`, without what no answer may hold."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from trio_gateway.services.account_rows import NotFound, Row, printable, storable

if TYPE_CHECKING:
    from collections.abc import Mapping

    from trio_gateway.clients.postgres import Connection

LEGACY = "sha256:"  # what the hash of an earlier release's token begins with
_HIDDEN = ("hash", "lookup")
_FIND = """
SELECT * FROM gateway.admins WHERE id = $1 OR name = $1 ORDER BY id = $1 DESC LIMIT 1
"""


async def find_admin(connection: Connection, name: str, *, lock: bool = False) -> Row:
    """Return an admin's row by id or name, its id first; raises NotFound."""
    row = await connection.fetchrow(_FIND + (" FOR UPDATE" if lock else ""), storable(name))
    if row is None:
        raise NotFound(f"there is no admin {printable(name)}", "admin")
    return shown_admin(dict(row))


def shown_admin(row: Mapping[str, Any]) -> Row:
    """Leave out what proves the token, and say whether it is honored."""
    shown = {column: value for column, value in row.items() if column not in _HIDDEN}
    over = row["expires_at"] is not None and row["expires_at"] <= datetime.now(UTC)
    state = "disabled" if row["disabled_at"] is not None else "expired" if over else "active"
    return {**shown, "state": state}
