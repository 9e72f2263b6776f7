"""`app` for `trio-gateway serve` and for the stock `hypercorn --worker-class trio` alike.

Everything is opened by the lifespan: a task in the application's nursery holds the gateway open
from start-up to shutdown, however the server came to run.
"""

from __future__ import annotations

import trio

from trio_gateway import settings
from trio_gateway.gateway import open_gateway
from trio_gateway.logs import configure
from trio_gateway.web.app import GatewayApp, create_app
from trio_gateway.web.gateway import Gateway  # noqa: TC001 - asked for at run time

SHUTDOWN_LIMIT = 8.0  # seconds for the gateway to close, after the last connection


def build() -> GatewayApp:
    """Build the application with its lifespan; settings are read at start-up."""
    app = create_app()
    app.config["BACKGROUND_TASK_SHUTDOWN_TIMEOUT"] = SHUTDOWN_LIMIT
    stop = trio.Event()
    closed = trio.Event()

    async def hold_open(task_status: trio.TaskStatus[Gateway]) -> None:
        loaded = settings.load()
        configure(loaded.log_level)
        app.config["MAX_CONTENT_LENGTH"] = loaded.max_body_bytes
        app.config["BODY_TIMEOUT"] = loaded.body_timeout
        try:
            async with open_gateway(loaded) as gateway:
                task_status.started(gateway)
                await stop.wait()
        finally:
            closed.set()

    @app.before_serving
    async def start() -> None:
        app.gateway = await app.nursery.start(hold_open)

    @app.after_serving
    async def finish() -> None:
        stop.set()
        await closed.wait()

    return app


app = build()
