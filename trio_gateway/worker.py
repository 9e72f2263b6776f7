"""One worker process: serves an ASGI application on sockets inherited from the supervisor.

    python -m trio_gateway.worker [MODULE:NAME]

The application may have `begin_drain()`, called once when the worker is told to stop: it
turns readiness off, and cuts what still runs when the drain time is over; and
`hasten_drain()`, called when it is told again.
"""

from __future__ import annotations

import gc
import importlib
import math
import os
import signal
import sys
from functools import partial
from typing import TYPE_CHECKING, Any

import trio
from hypercorn.config import Config
from hypercorn.trio import serve
from hypercorn.utils import LifespanFailureError, LifespanTimeoutError

from trio_gateway import settings
from trio_gateway.core.causes import first_of, sentence_of
from trio_gateway.listening import BACKLOG

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

APPLICATION = "trio_gateway.asgi:app"
CANNOT_START = 3
BROKEN = 4
# time for settling, after live calls were cut
GRACE_SECONDS = 5.0
# time for the application's lifespan to close, after the last connection
SHUTDOWN_SECONDS = 10.0
LAST_RESORT_SECONDS = SHUTDOWN_SECONDS + 2.0


class CannotStart(LifespanFailureError):
    """Raised when the application's start-up fails; Hypercorn lets this class through."""

    def __init__(self, reason: str) -> None:
        """Keep the application's own words."""
        super().__init__("startup", reason)
        self.reason = reason


class Guarded:
    """The application, with its lifespan watched.

    Hypercorn goes on serving when a lifespan breaks; behind it are the stores and the
    revocations, so a worker without it must not serve at all.
    """

    def __init__(self, application: Any) -> None:
        """`application` is any ASGI 3 callable."""
        self._application = application
        self.started = False
        self._leaving = False
        self.broken = trio.Event()

    def __call__(self, scope: Any, receive: Any, send: Any) -> Awaitable[None]:
        """Pass on, without a frame of our own on the path of a call."""
        if scope["type"] == "lifespan":
            return self._lifespan(scope, receive, send)
        passed: Awaitable[None] = self._application(scope, receive, send)
        return passed

    async def _lifespan(self, scope: Any, receive: Any, send: Any) -> None:
        async def watched_send(message: Any) -> None:
            if message["type"] == "lifespan.startup.failed":
                raise CannotStart(message.get("message", ""))
            self.started |= message["type"] == "lifespan.startup.complete"
            await send(message)

        async def watched_receive() -> Any:
            message = await receive()
            self._leaving |= message["type"] == "lifespan.shutdown"
            return message

        try:
            await self._application(scope, watched_receive, watched_send)
        except Exception as error:
            if self.started:
                raise
            raise CannotStart(_sentence(error)) from error
        finally:
            if self.started and not self._leaving:
                self.broken.set()


def main(arguments: list[str]) -> int:
    """Serve until told to stop; return the exit code."""
    application = arguments[0] if arguments else APPLICATION
    # taken out of the environment, so that nothing started from here sees them
    sockets = os.environ.pop("_TRIO_GATEWAY_LISTEN_FDS").split(",")
    ready = int(os.environ.pop("_TRIO_GATEWAY_READY_FD"))
    go = int(os.environ.pop("_TRIO_GATEWAY_GO_FD"))
    try:
        drain_timeout = settings.load().drain_timeout
        loaded = _load(application)
        guarded = Guarded(loaded)
        config = configure(sockets, drain_timeout)
        # imported ahead of the stores' start; nothing comes when the supervisor has gone
        if not os.read(go, 16):
            return 0
        os.close(go)
        trio.run(partial(_serve, loaded, guarded, config, ready))
    except Exception as error:  # noqa: BLE001 - every failure becomes one sentence
        return _explain(error)
    return BROKEN if guarded.broken.is_set() else 0


def configure(sockets: list[str], drain_timeout: float) -> Config:
    """Make Hypercorn's configuration for listening descriptors; `drain_timeout` in seconds."""
    config = Config()
    config.bind = [f"fd://{descriptor}" for descriptor in sockets]
    config.backlog = BACKLOG
    config.accesslog = None
    config.loglevel = "WARNING"
    config.include_server_header = False
    config.h11_max_incomplete_size = 64 * 1024
    config.keep_alive_timeout = 75
    config.keep_alive_max_requests = 1_000_000
    # lines of batches have no connection: what of them is under way ends in the lifespan
    config.shutdown_timeout = drain_timeout + SHUTDOWN_SECONDS
    config.graceful_timeout = drain_timeout + GRACE_SECONDS
    return config


def _load(path: str) -> Any:
    module, _, name = path.partition(":")
    return getattr(importlib.import_module(module), name or "app")


async def _serve(application: Any, guarded: Guarded, config: Config, ready: int) -> None:
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        async with trio.open_nursery() as nursery:
            trigger = partial(_told_to_stop, signals, application, guarded, config, nursery)
            serving = partial(serve, config=config, shutdown_trigger=trigger, mode="asgi")
            async with trio.open_nursery() as serving_nursery:
                await serving_nursery.start(serving, guarded)
                # Hypercorn listens for an instant even when the start-up has failed
                if guarded.started:
                    _report_ready(ready)
            nursery.cancel_scope.cancel()


def _report_ready(ready: int) -> None:
    # what start-up made stays: no full collection need look at it again
    gc.collect()
    gc.freeze()
    os.write(ready, b"ready\n")
    os.close(ready)


async def _told_to_stop(
    signals: AsyncIterator[int],
    application: Any,
    guarded: Guarded,
    config: Config,
    nursery: trio.Nursery,
) -> None:
    """Return when the worker has to leave: a signal came, or its lifespan broke."""
    async with trio.open_nursery() as waiting:
        waiting.start_soon(_then_cancel, signals.__anext__, waiting.cancel_scope)
        waiting.start_soon(_then_cancel, guarded.broken.wait, waiting.cancel_scope)
    # The kernel's own timer ends a worker that is stuck, also when no supervisor is left.
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.alarm(math.ceil(config.graceful_timeout + LAST_RESORT_SECONDS))
    _call(application, "begin_drain")
    nursery.start_soon(_hasten, signals, application)


async def _then_cancel(wait: Callable[[], Awaitable[Any]], scope: trio.CancelScope) -> None:
    await wait()
    scope.cancel()


async def _hasten(signals: AsyncIterator[int], application: Any) -> None:
    async for _ in signals:
        _call(application, "hasten_drain")


def _call(application: Any, name: str) -> None:
    hook = getattr(application, name, None)
    if hook is not None:
        hook()


def _explain(error: BaseException) -> int:
    error = first_of(error)
    if isinstance(error, settings.BadSettings):
        text = "\n".join(error.problems)
    elif isinstance(error, LifespanTimeoutError):
        text = "the start took too long"
    else:
        text = _sentence(error)
    sys.stderr.write(f"trio-gateway: a worker cannot serve: {text}\n")
    return CANNOT_START


def _sentence(error: BaseException) -> str:
    first = first_of(error)
    return first.reason if isinstance(first, CannotStart) else sentence_of(first)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
