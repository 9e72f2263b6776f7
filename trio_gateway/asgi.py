"""`app` for `trio-gateway serve` and for the stock `hypercorn --worker-class trio` alike.

Everything is opened by the lifespan: a task in the application's nursery holds the gateway open
from start-up to shutdown, however the server came to run.
"""

from __future__ import annotations

import gc
import os
import signal
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING

import structlog
import trio

from trio_gateway import settings
from trio_gateway.clients.containment import contain
from trio_gateway.gateway import open_gateway
from trio_gateway.logs import configure
from trio_gateway.web.app import GatewayApp, create_app
from trio_gateway.web.gateway import Gateway  # noqa: TC001 - asked for at run time
from trio_gateway.web.unreadable import unreadable

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator
    from contextlib import AbstractContextManager

    import httpx

    from trio_gateway.settings import Settings

    Signals = AsyncIterator[int] | None

log = structlog.get_logger()

COLLECT = (10_000, 20, 50)  # a call makes some hundred objects: the default collects at every few
SHUTDOWN_LIMIT = 8.0  # seconds for the gateway to close, after the last call or line
LEAVE_AFTER = 2.0  # seconds for the server's own shutdown to come, after the last call


def build(
    configuration: Callable[[], Settings] = settings.load,
    transport: httpx.AsyncBaseTransport | None = None,
    broken: Callable[[], None] = lambda: None,
    ready: Callable[[], None] = lambda: None,
    told: Callable[[], AbstractContextManager[Signals]] = nullcontext,
) -> GatewayApp:
    """Build the application with its lifespan; the settings are read at start-up.

    `transport` replaces the one to upstream: the seam where the tests put a simulated Ollama.
    `broken` is called when a service crashed: hypercorn would go on serving without them.
    `ready` is called when the start is over. `told` receives the signals that begin a drain.
    """
    contain(unreadable)
    app = create_app()
    stop, closed = trio.Event(), trio.Event()

    async def hold_open(task_status: trio.TaskStatus[Gateway]) -> None:
        loaded = _configured(app, configuration())
        try:
            # The signals outside the gateway: one of them must not end its last rows.
            with told() as signals:
                async with open_gateway(loaded, transport) as gateway:
                    gateway.nursery.start_soon(_drain_when_told, signals, gateway)
                    task_status.started(gateway)
                    app.gateway = gateway
                    await stop.wait()
        except Exception as error:
            if hasattr(app, "gateway"):
                log.critical("gateway_broken", exc_info=error)
                broken()
            raise
        finally:
            closed.set()

    @app.before_serving
    async def start() -> None:
        await app.nursery.start(hold_open)
        ready()

    @app.after_serving
    async def finish() -> None:
        stop.set()
        await closed.wait()

    return app


def _configured(app: GatewayApp, loaded: Settings) -> Settings:
    configure(loaded.log_level)
    app.config["MAX_CONTENT_LENGTH"] = loaded.max_body_bytes
    app.config["BODY_TIMEOUT"] = loaded.body_timeout
    app.config["BACKGROUND_TASK_SHUTDOWN_TIMEOUT"] = loaded.drain_timeout + SHUTDOWN_LIMIT
    return loaded


def _leave() -> None:
    """End this process: its calls are swept, and whoever supervises it starts another."""
    os.kill(os.getpid(), signal.SIGTERM)


@contextmanager
def _sigterm() -> Iterator[Signals]:
    """Receive SIGTERM where nobody else does, which is in a worker of stock hypercorn.

    Its parent sends one to every worker as soon as the first has drained, and by default the
    others would die in the middle of their own drain, calls and all.
    """
    if signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield None
        return
    with trio.open_signal_receiver(signal.SIGTERM) as signals:
        yield signals


async def _drain_when_told(signals: Signals, gateway: Gateway) -> None:
    if signals is None:
        return
    async with trio.open_nursery() as nursery:
        async for _ in signals:
            # further ones change nothing: a parent that stops sends several
            if not gateway.draining:
                gateway.begin_drain()
                nursery.start_soon(_leave_when_idle, gateway)


async def _leave_when_idle(gateway: Gateway) -> None:
    await gateway.refusing.wait()
    await gateway.live.ended()
    await gateway.gate.writer.drained()
    await trio.sleep(LEAVE_AFTER)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    _leave()


def _spare_collector() -> None:
    """Let full collections pass over what the start made, and young ones come less often."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(*COLLECT)


app = build(broken=_leave, ready=_spare_collector, told=_sigterm)
