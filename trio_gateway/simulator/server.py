"""The simulated Ollama on a socket."""

from __future__ import annotations

import contextlib
from functools import partial
from typing import TYPE_CHECKING

import hypercorn.trio
import trio
from hypercorn.config import Config

from trio_gateway.simulator.stream import Died

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from hypercorn.typing import ASGIReceiveCallable, ASGISendCallable, Scope

    from trio_gateway.simulator.app import Simulator


async def serve(
    app: Simulator,
    bind: str = "127.0.0.1:0",
    *,
    shutdown_trigger: Callable[[], Awaitable[None]] | None = None,
    task_status: trio.TaskStatus[str] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve until cancelled or until the trigger returns; reports its URL as started.

    `bind` is host:port (port 0 takes a free one) or fd://N for a socket already bound.
    """
    config = Config()
    config.bind = [bind]
    config.loglevel = "WARNING"
    config.include_server_header = False
    config.keep_alive_timeout = 3600
    config.keep_alive_max_requests = 2**31
    config.graceful_timeout = 0.1

    async def undisturbed(
        scope: Scope, receive: ASGIReceiveCallable, send: ASGISendCallable
    ) -> None:
        # Hypercorn breaks the connection of an unfinished answer; raising would add a traceback.
        with contextlib.suppress(Died):
            await app(scope, receive, send)

    start = partial(
        hypercorn.trio.serve, undisturbed, config, shutdown_trigger=shutdown_trigger, mode="asgi"
    )
    async with trio.open_nursery() as nursery:
        urls = await nursery.start(start)
        task_status.started(urls[0])
