"""Reads for one page, all at once; a store that is away costs its part of the page alone."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import trio

from trio_gateway.clients.postgres import NotMigrated
from trio_gateway.core.errors import StoreUnavailable
from trio_gateway.web.admin.dashboard.bounded import within

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    Read = tuple[str, Callable[[], Awaitable[Any]]]

PATIENCE = 4.0  # seconds for all reads of a page together
POSTGRES = "PostgreSQL"
REDIS = "Redis"


async def together(**reads: Read) -> tuple[dict[str, Any], list[str]]:
    """Return what each `(store, read)` gave, None where its store is away, and what is missing."""
    found: dict[str, Any] = dict.fromkeys(reads)
    missing: set[str] = set()

    async def one(name: str, store: str, read: Callable[[], Awaitable[Any]]) -> None:
        try:
            found[name] = await within(PATIENCE, read)
        except (StoreUnavailable, NotMigrated):
            missing.add(store)

    try:
        async with trio.open_nursery() as nursery:
            for name, (store, read) in reads.items():
                nursery.start_soon(one, name, store, read)
    except BaseExceptionGroup as group:
        if len(group.exceptions) == 1:
            raise group.exceptions[0] from None  # noqa: ASYNC123 - a page asks for the error itself
        raise
    return found, sorted(missing)
