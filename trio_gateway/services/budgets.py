"""Budgets that change: whoever comes near the end of the new one is noticed at once."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

    from trio_gateway.clients.postgres import Connection

_BUDGET = frozenset({"budget", "budget_period", "budget_extra"})
_NOTICE = """
SELECT gateway.notice_budgets(ARRAY[$1], ARRAY[(now() AT TIME ZONE 'UTC')::date], false)
"""


async def notice_change(connection: Connection, scope: str, columns: Iterable[str]) -> None:
    """Write the notices that a change of these columns makes due, in its transaction.

    `scope` is as in `gateway.spend`: `t:<id>` or `k:<id>`.
    """
    if not _BUDGET.isdisjoint(columns):
        await connection.execute(_NOTICE, scope)
