"""The parent of an installation: stores, workers and the admin listener, each in its nursery.

What is started later depends on what was started before it, so each floor's nursery encloses
the next floor, and leaving happens in reverse order by nesting:

    stores and companions > prepare > admin > workers > ready
"""

from __future__ import annotations

import signal
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Protocol

import trio

from trio_gateway import listening
from trio_gateway.core.causes import sentence_of
from trio_gateway.keeping import Kept, StartFailed, Stop, keep, say
from trio_gateway.kept import KeptStore, KeptWorker

if TYPE_CHECKING:
    import socket
    from collections.abc import Awaitable, Callable, Mapping, Sequence

    from trio_gateway.embedded.store import Store

APPLICATION = "trio_gateway.asgi:app"


class Serving(Protocol):
    """An admin listener: serves until cancelled, and says when it began."""

    def __call__(self, *, task_status: trio.TaskStatus[None]) -> Awaitable[None]:
        """Serve until cancelled."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What is to run.

    `sockets` already listen and are closed at the end; `environ` is the whole environment of
    the workers; `drain_timeout` in seconds. `prepare` runs once when the stores answer,
    `ready` once when every worker serves.
    """

    sockets: list[socket.socket]
    environ: Mapping[str, str]
    drain_timeout: float
    workers: int = 1
    application: str = APPLICATION
    stores: Sequence[Store] = ()
    companions: Sequence[Kept] = ()
    prepare: Callable[[], Awaitable[None]] | None = None
    admin: Serving | None = None
    ready: Callable[[], None] | None = None
    stop: Stop = field(default_factory=Stop)


async def run_supervised(plan: Plan) -> None:
    """Run the plan until SIGTERM, SIGINT or SIGHUP; a second one hastens the drain.

    Call it on the main thread. Raises StartFailed or StoreFailed, perhaps inside exception
    groups, when something does not start; afterwards no child is left.
    """
    with trio.open_signal_receiver(*_stop_signals()) as signals:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(plan.stop.listen, signals)
            workers = _workers_of(plan)
            try:
                for worker in workers:
                    worker.preload()
                await _stores(plan, workers)
            finally:
                listening.close(plan.sockets)
                with trio.CancelScope(shield=True):
                    # those that never came to begin
                    for worker in workers:
                        await worker.end(plan.stop)
            nursery.cancel_scope.cancel()


def _workers_of(plan: Plan) -> list[KeptWorker]:
    descriptors = [one.fileno() for one in plan.sockets]
    return [
        KeptWorker(plan.application, plan.environ, descriptors, plan.drain_timeout)
        for _ in range(plan.workers)
    ]


def _stop_signals() -> list[signal.Signals]:
    # under nohup a closed terminal is to be survived
    hangup = [] if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN else [signal.SIGHUP]
    return [signal.SIGTERM, signal.SIGINT, *hangup]


async def _stores(plan: Plan, workers: list[KeptWorker]) -> None:
    async def inside() -> None:
        if plan.prepare is not None:
            with plan.stop.interruptible():
                await plan.prepare()
        if not plan.stop.asked.is_set():
            await _admin(plan, workers)

    # companions need no store, so they start at the same time
    await _floor(plan, [*map(KeptStore, plan.stores), *plan.companions], inside)


async def _admin(plan: Plan, workers: list[KeptWorker]) -> None:
    async def inside() -> None:
        if plan.ready is not None:
            plan.ready()
        await plan.stop.asked.wait()
        # Before the workers close theirs: a connection must be refused rather than wait in a
        # queue that nobody will ever accept from.
        listening.close(plan.sockets)

    if plan.admin is None:
        await _floor(plan, workers, inside)
        return
    async with trio.open_nursery() as nursery:
        with plan.stop.interruptible():
            await nursery.start(_keep_admin, plan.admin)
        if not plan.stop.asked.is_set():
            await _floor(plan, workers, inside)
        nursery.cancel_scope.cancel()


async def _floor(plan: Plan, kept: Sequence[Kept], inside: Callable[[], Awaitable[None]]) -> None:
    """Start all of `kept` at once, run `inside` above them, and stop them after it."""
    async with trio.open_nursery() as nursery:
        with plan.stop.interruptible():
            async with trio.open_nursery() as starting:
                for one in kept:
                    starting.start_soon(nursery.start, partial(keep, one, plan.stop))
        if not plan.stop.asked.is_set():
            await inside()
        nursery.cancel_scope.cancel()


async def _keep_admin(admin: Serving, *, task_status: trio.TaskStatus[None]) -> None:
    """Serve the admin listener; its failure must not stop the calls that workers carry."""
    begun = False
    while True:
        try:
            async with trio.open_nursery() as nursery:
                await nursery.start(partial(admin))
                if not begun:
                    begun = True
                    task_status.started()
        except Exception as error:
            if not begun:
                reason = sentence_of(error)
                raise StartFailed(f"the admin listener did not start: {reason}") from error
            say("restarting", what="admin listener", reason=type(error).__name__, pause=1.0)
        await trio.sleep(1)
