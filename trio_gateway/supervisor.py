"""The parent of an installation: stores, workers and the admin listener, each in its nursery.

What is started later depends on what was started before it, so each floor's nursery encloses
the next floor, and leaving happens in reverse order by nesting:

    stores and companions > prepare > admin > workers > ready
"""

from __future__ import annotations

import signal
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

import trio

from trio_gateway import listening
from trio_gateway.keeping import Kept, Stop, keep
from trio_gateway.kept import KeptStore, KeptWorker

if TYPE_CHECKING:
    import socket
    from collections.abc import Awaitable, Callable, Mapping, Sequence

    from trio_gateway.embedded.store import Store

APPLICATION = "trio_gateway.asgi:app"
ACCEPT_SECONDS = 2.0  # until workers have accepted what waits; longer if they do not come to it
TICK = 0.01
ADMIN_DRAIN = 1.0  # seconds; nothing on the admin listener is worth waiting for


@dataclass(frozen=True, kw_only=True)
class AdminPlan:
    """The admin listener, in a process of its own: what it does never delays a call.

    `sockets` already listen and are closed at the end; `environ` is its whole environment.
    """

    sockets: list[socket.socket]
    environ: Mapping[str, str]
    application: str


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
    admin: AdminPlan | None = None
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
            workers, admin = _workers_of(plan), _admin_of(plan)
            try:
                for one in (*workers, *admin):
                    one.preload()
                await _stores(plan, workers, admin)
            finally:
                listening.close(plan.sockets)
                if plan.admin is not None:
                    listening.close(plan.admin.sockets)
                with trio.CancelScope(shield=True):
                    # those that never came to begin
                    for one in (*workers, *admin):
                        await one.end(plan.stop)
            nursery.cancel_scope.cancel()


def _workers_of(plan: Plan) -> list[KeptWorker]:
    descriptors = [one.fileno() for one in plan.sockets]
    return [
        KeptWorker(
            plan.application, plan.environ, descriptors, plan.drain_timeout, slot=f"w{number}"
        )
        for number in range(plan.workers)
    ]


def _admin_of(plan: Plan) -> list[KeptWorker]:
    if plan.admin is None:
        return []
    descriptors = [one.fileno() for one in plan.admin.sockets]
    application, environ = plan.admin.application, plan.admin.environ
    return [
        KeptWorker(
            application, environ, descriptors, ADMIN_DRAIN, slot="admin", name="admin listener"
        )
    ]


def _stop_signals() -> list[signal.Signals]:
    # under nohup a closed terminal is to be survived
    hangup = [] if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN else [signal.SIGHUP]
    return [signal.SIGTERM, signal.SIGINT, *hangup]


async def _stores(plan: Plan, workers: list[KeptWorker], admin: list[KeptWorker]) -> None:
    async def inside() -> None:
        if plan.prepare is not None:
            with plan.stop.interruptible():
                await plan.prepare()
        if not plan.stop.asked.is_set():
            await _floor(plan, admin, partial(_floor, plan, workers, ready))

    async def ready() -> None:
        if plan.ready is not None:
            plan.ready()
        await plan.stop.asked.wait()
        # Before the workers close theirs: a connection must be refused rather than wait in a
        # queue that nobody will ever accept from. Those that wait there now are accepted first.
        listening.turn_away(plan.sockets)
        with trio.move_on_after(ACCEPT_SECONDS):
            while listening.crowded(plan.sockets):  # noqa: ASYNC110 - the kernel tells nobody
                await trio.sleep(TICK)
        listening.close(plan.sockets)

    # companions need no store, so they start at the same time
    await _floor(plan, [*map(KeptStore, plan.stores), *plan.companions], inside)


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
