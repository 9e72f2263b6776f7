"""`app` of the admin listener: `serve` and `quickstart` run it beside the workers."""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio

from trio_gateway import settings
from trio_gateway.clients.containment import contain
from trio_gateway.logs import configure
from trio_gateway.office import open_office
from trio_gateway.web.admin.app import AdminApp, create_admin
from trio_gateway.web.admin.errors import DIALECT
from trio_gateway.web.unreadable import unreadable

if TYPE_CHECKING:
    from collections.abc import Callable

    from trio_gateway.settings import Settings


def build(configuration: Callable[[], Settings] = settings.load) -> AdminApp:
    """Build the application with its lifespan; the settings are read at start-up."""
    contain(lambda status, _: unreadable(status, DIALECT))
    app = create_admin()
    stop, closed = trio.Event(), trio.Event()

    async def hold_open(task_status: trio.TaskStatus[None]) -> None:
        loaded = configuration()
        configure(loaded.log_level)
        try:
            async with open_office(loaded) as office:
                app.office = office
                task_status.started()
                await stop.wait()
        finally:
            closed.set()

    @app.before_serving
    async def start() -> None:
        await app.nursery.start(hold_open)

    @app.after_serving
    async def finish() -> None:
        stop.set()
        await closed.wait()

    return app


app = build()
