"""Hears of every change to keys, tenants and models, evicts what is cached and cuts live calls.

A change travels as NOTIFY from a trigger, whoever made it; changes of batches are passed on.
While the listener is down nothing is served from the cache, and live keys and the models'
policies are looked up twice a second. When it is back the cache is emptied and they are looked up
once more, before it is believed again: no lost NOTIFY leaves a key alive.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Protocol

import structlog
import trio

from trio_gateway.clients.postgres import open_listener, within
from trio_gateway.core.errors import CallCut, StoreUnavailable, Unauthenticated

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from trio_gateway.clients.bridge import Bridge
    from trio_gateway.clients.postgres import Listener
    from trio_gateway.services.live import Live

log = structlog.get_logger()

CHANNEL = "gateway_changes"
BEAT = 1.0  # seconds between two proofs of life
BEAT_LIMIT = 1.0  # seconds for the answer
POLL = 0.5  # seconds between two looks while the listener is down, and two attempts to listen
LOOK_LIMIT = 3.0  # seconds for one look, which a dead connection must not hold up


class Keys(Protocol):
    """The part of `Tenants` that changes matter to."""

    trusted: bool

    def forget_key(self, key_id: str) -> None:
        """Drop what is cached of a key."""

    def forget_tenant(self, tenant_id: str) -> None:
        """Drop what is cached of a tenant's keys."""

    def forget_all(self) -> None:
        """Drop everything cached."""

    async def standing(self, key_ids: set[str]) -> set[str]:
        """Return those keys whose calls may go on."""


class Revocations:
    """The listener of one worker."""

    def __init__(
        self,
        bridge: Bridge,
        dsn: str,
        keys: Keys,
        live: Live,
        refresh_models: Callable[[], Awaitable[None]],
        batch_changed: Callable[[str], None] = lambda _: None,
    ) -> None:
        """`dsn` must lead past any transaction pooler; the last two hear of what is not a key."""
        # Told of calls cut, and why; and of the seconds that a revocation took to get here.
        self.cut: Callable[[str, int], object] = lambda _, __: None
        self.heard: Callable[[float], object] = lambda _: None
        self._bridge = bridge
        self._dsn = dsn
        self._keys = keys
        self._live = live
        self._refresh_models = refresh_models
        self._batch_changed = batch_changed
        self._wake = trio.Event()
        self._suspects: set[str] = set()
        self._models_changed = False
        self._lost = False
        self._answered = False
        self._reading = trio.Lock()  # an older answer must not come after a newer one

    @property
    def listening(self) -> bool:
        """Whether changes are heard as they happen."""
        return self._keys.trusted

    @property
    def informed(self) -> bool:
        """Whether keys can be proven: changes are heard, or what was last asked was answered."""
        return self._keys.trusted or self._answered

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Listen for ever; started once the first listener has caught up."""
        async with trio.open_nursery() as nursery:
            await nursery.start(self._hear)
            task_status.started()
            while True:
                await trio.sleep(POLL)
                if not self._keys.trusted:
                    await self._poll_once()

    async def _hear(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        announced = False
        while True:
            try:
                self._lost = False
                async with open_listener(
                    self._bridge, self._dsn, CHANNEL, self._deliver, self._drop
                ) as listener:
                    await self._catch_up()
                    log.info("listener_up", again=announced)
                    if not announced:
                        announced = True
                        task_status.started()
                    await self._listen(listener)
            except StoreUnavailable:
                log.warning("listener_down")
            finally:
                self._keys.trusted = False
            await trio.sleep(POLL)

    async def _catch_up(self) -> None:
        """Look up what was not heard; until that is done the poll goes on."""
        # First, so that a key whose row was read before changes were heard of is read anew: it
        # could become live behind the look at those that are.
        self._keys.forget_all()
        await self._read_models()
        await self._recheck(self._live.keys())
        if not self._lost:
            self._answered = self._keys.trusted = True

    async def _read_models(self) -> None:
        async with self._reading:
            with within(LOOK_LIMIT):
                await self._refresh_models()

    async def _listen(self, listener: Listener) -> None:
        while not self._lost:
            self._wake = trio.Event()
            if not (self._suspects or self._models_changed):
                with trio.move_on_after(BEAT):
                    await self._wake.wait()
            if self._models_changed:
                self._models_changed = False
                await self._read_models()
            suspects, self._suspects = self._suspects, set()
            if suspects:
                await self._recheck(suspects)
            else:
                await listener.beat(BEAT_LIMIT)
        raise StoreUnavailable

    def _deliver(self, payload: str) -> None:
        """Take one notification, inside the event loop: evict and cut at once."""
        kind, _, subject = payload.partition(":")
        if kind == "stamp":  # right behind `revoked`, which has cut by now
            self._measure(subject)
            return
        if kind == "revoked":
            self._keys.forget_key(subject)
            cut = self._live.cut([subject], Unauthenticated)
            self.cut("revoked", cut)
            log.info("key_revoked", key_id=subject, calls_cut=cut)
        elif kind == "key":
            self._keys.forget_key(subject)
            self._suspects.add(subject)
        elif kind == "tenant":
            self._keys.forget_tenant(subject)
            self._suspects |= self._live.keys_of(subject)
        elif kind == "cut":
            if self._live.cut_call(subject, CallCut()):
                self.cut("operator", 1)
                log.info("call_cut", request_id=subject)
        elif kind == "batch":
            self._batch_changed(subject)
            return
        elif kind == "models":
            self._models_changed = True
        self._wake.set()

    def _measure(self, subject: str) -> None:
        stamp = subject.rpartition(":")[2]
        if stamp.isdecimal():
            self.heard(max(0.0, time.time() - int(stamp) / 1_000_000))

    def _drop(self) -> None:
        self._lost = True
        self._keys.trusted = False
        self._wake.set()

    async def _poll_once(self) -> None:
        try:
            await self._recheck(self._live.keys())
            await self._read_models()
        except StoreUnavailable:
            self._answered = False
            log.debug("live_keys_unknown")
        else:
            self._answered = True

    async def _recheck(self, key_ids: set[str]) -> None:
        live = key_ids & self._live.keys()
        if not live:
            return
        with within(LOOK_LIMIT):
            standing = await self._keys.standing(live)
        cut = self._live.cut(live - standing, Unauthenticated)
        self.cut("no_longer_valid", cut)
        if cut:
            log.info("calls_cut", calls=cut)
