"""Temporary increases of a budget, by PostgreSQL's clock."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import TYPE_CHECKING

from trio_gateway.services.account_rows import BIGGEST, Refused, Row
from trio_gateway.services.instants import check_instant

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

    from trio_gateway.clients.postgres import Connection

LONGEST = timedelta(days=36_500)
ENDED: Row = {"budget_extra": None, "budget_extra_until": None}


async def extension(
    connection: Connection, row: Mapping[str, Any], tokens: int, until: datetime | timedelta
) -> Row:
    """Return the columns that add `tokens` to the budget of a row until an instant.

    A span counts from PostgreSQL's now. What was added before is replaced. Raises Refused.
    """
    if row["budget"] is None:
        raise Refused("there is no budget to extend: it is unlimited", "budget")
    most = BIGGEST - row["budget"]
    if not 1 <= tokens <= most:
        raise Refused(f"must be 1 to {most}", "tokens")
    if isinstance(until, timedelta):
        if not timedelta(0) < until <= LONGEST:
            raise Refused("must be longer than nothing and at most a hundred years", "until")
        end = await connection.fetchval("SELECT now() + $1", until)
    else:
        check_instant(until, "until")
        end = until
        if not await connection.fetchval("SELECT $1::timestamptz > now()", end):
            raise Refused("must be in the future", "until")
    return {"budget_extra": tokens, "budget_extra_until": end}
