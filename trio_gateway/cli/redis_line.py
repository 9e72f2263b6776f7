"""Redis for the one or two commands that ask it."""

from __future__ import annotations

import logging
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import structlog
import trio

from trio_gateway.cli.door import Failure
from trio_gateway.cli.session import place
from trio_gateway.clients.redis import Redis

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

REDIS_LIMIT = 4.0  # seconds to reach Redis


@asynccontextmanager
async def open_redis(url: str, *, patient: bool = True) -> AsyncIterator[Redis]:
    """Hold a connection to Redis; raises Failure where there is none, or the URL is none.

    Who is `patient` tries again for REDIS_LIMIT: the server may be starting.
    """
    # the client tells a log of its troubles, which a command tells its user
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    try:
        redis = Redis(url, {})
    except ValueError as error:
        raise Failure(str(error)) from error
    async with trio.open_nursery() as nursery:
        reach = trio.CancelScope(deadline=trio.current_time() + REDIS_LIMIT)
        if not patient:
            nursery.start_soon(_give_up, redis, reach)
        with reach:
            await nursery.start(redis.run)
        reached = redis.connected
        if reached:
            yield redis
        nursery.cancel_scope.cancel()
    if not reached:
        why = f": {redis.trouble}" if redis.trouble else ""
        raise Failure(f"Redis cannot be used at {place(url)}{why}")


async def _give_up(redis: Redis, reach: trio.CancelScope) -> None:
    await redis.failed.wait()
    reach.cancel()
