"""A bound for reads of a store that may hang: whoever waits is let go, whatever the store does."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar, cast

import trio
from quart import current_app

from trio_gateway.core.errors import StoreUnavailable

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from quart_trio import QuartTrio

T = TypeVar("T")


async def within(limit: float, read: Callable[[], Awaitable[T]]) -> T:
    """Return what `read` gave, or raise what it raised, or StoreUnavailable after `limit` seconds.

    A read that is given up is canceled, which may take the client of a store that hangs some
    seconds more, as it asks the store to stop too. That goes on in the listener's nursery.
    """
    scope, over, given = trio.CancelScope(), trio.Event(), list[Any]()

    async def run() -> None:
        with scope:
            try:
                given.append((await read(), None))
            except Exception as error:  # noqa: BLE001 - raised below, where it is waited for
                given.append((None, error))
        over.set()

    cast("QuartTrio", current_app).nursery.start_soon(run)
    try:
        with trio.move_on_after(limit):
            await over.wait()
    finally:
        scope.cancel()
    if not given:
        raise StoreUnavailable
    value, error = given[0]
    if error is not None:
        raise error
    return cast("T", value)
