"""Reads for one page, all at once; a store that is away costs its part of the page alone."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from trio_gateway.clients.at_once import at_once
from trio_gateway.clients.postgres import within
from trio_gateway.core.errors import StoreUnavailable

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    Read = tuple[str, Callable[[], Awaitable[Any]]]

PATIENCE = 4.0  # seconds for all reads of a page together
POSTGRES = "PostgreSQL"
REDIS = "Redis"


async def together(**reads: Read) -> tuple[dict[str, Any], list[str]]:
    """Return what each `(store, read)` gave, None where its store is away, and what is missing."""
    missing: set[str] = set()

    async def one(store: str, read: Callable[[], Awaitable[Any]]) -> Any:
        try:
            with within(PATIENCE):
                return await read()
        except StoreUnavailable:
            missing.add(store)
        return None

    found = await at_once({name: partial(one, *each) for name, each in reads.items()})
    return found, sorted(missing)
