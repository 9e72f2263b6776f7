"""One worker as the web floor sees it: the wired services, and the few acts that need several."""

from __future__ import annotations

import os
import re
import socket
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

import structlog
import trio

from trio_gateway import __version__
from trio_gateway.clients.parting import PARTING
from trio_gateway.core.errors import CallerError, ClientStalled, GatewayError, ShuttingDown
from trio_gateway.services.audit import AuditLog, Refusal
from trio_gateway.web.credentials import client_address
from trio_gateway.web.upload import Berths

if TYPE_CHECKING:
    from trio_gateway.clients.blobs import Blobs
    from trio_gateway.clients.hangups import Hangups
    from trio_gateway.clients.redis import Redis
    from trio_gateway.pipeline.batches.engine import Engine
    from trio_gateway.pipeline.gate import Gate
    from trio_gateway.pipeline.observing import Observer
    from trio_gateway.services.batches.book import BatchBook
    from trio_gateway.services.files.files import Files
    from trio_gateway.services.live import Live
    from trio_gateway.services.revocation import Revocations
    from trio_gateway.services.tenants import Tenants
    from trio_gateway.settings import Settings
    from trio_gateway.web.cors import Cors

log = structlog.get_logger()

# Some clients are set up with their key in the path. Whatever could be one, or a piece of one, is
# left out, in any case and encoding.
_SECRET = re.compile(r"sk-tg-[^/]*|[A-Za-z0-9]{16,}", re.IGNORECASE)

LATE = 0.2  # seconds that a request may be under way on a connection that was kept till the last


@dataclass(slots=True, kw_only=True)
class Gateway:
    """One worker's wired services, as the web floor sees them."""

    settings: Settings
    gate: Gate
    tenants: Tenants
    live: Live
    audit: AuditLog
    redis: Redis
    revocations: Revocations
    hangups: Hangups
    cors: Cors
    nursery: trio.Nursery
    files: Files
    blobs: Blobs
    batches: BatchBook
    engine: Engine
    observer: Observer
    trusted: tuple[Any, ...] = ()
    berths: Berths = field(default_factory=Berths)
    draining: bool = field(default=False)
    refusing: trio.Event = field(default_factory=trio.Event)  # once kept connections are given up
    started_at: float = field(default_factory=time.time)

    def missing(self) -> list[str]:
        """Name what keeps this worker from being ready.

        One that does not hear of changes still admits calls where PostgreSQL answers; but others
        are better asked.
        """
        states = {
            "shutting down": self.draining,
            "postgres": not self.revocations.listening,
            "redis": not self.redis.connected,
            "counters": self.redis.connected and not self.gate.quota.trusted,
        }
        return [name for name, bad in states.items() if bad]

    def describe(self) -> dict[str, Any]:
        """Say how this worker fares, for `services.workers`."""
        gate, backends = self.gate, self.gate.backends
        return {
            "host": socket.gethostname(),
            "slot": os.environ.get("_TRIO_GATEWAY_SLOT", ""),
            "pid": os.getpid(),
            "version": __version__,
            "started_at": self.started_at,
            "reported_at": time.time(),
            "missing": self.missing(),
            "calls": len(self.live),
            "in_flight": backends.in_flight,
            "waiting": backends.waiting,
            "queue_limit": backends.queue_limit,
            "unsettled": len(gate.quota.unsettled),
            "ledger_backlog": gate.writer.backlog,
            "audit_waiting": self.audit.waiting,
            "backends": [
                {
                    "host": urlsplit(url).netloc.rpartition("@")[2],
                    "healthy": backends.healthy(url),
                    "in_flight": backends.slots - backends.free(url),
                    "slots": backends.slots,
                    "models": gate.catalog.count(url),
                }
                for url in backends.urls
            ],
        }

    def client_of(self, scope: dict[str, Any]) -> str | None:
        """Return the client's address, past trusted proxies."""
        return client_address(scope, self.trusted)

    def refused_call(self, error: GatewayError, asked: Any) -> None:
        """Note a refusal of a request that had passed the screen."""
        timeline = asked.timeline
        if not timeline.carried:
            timeline.error, timeline.status = error.code, error.status
            self.observer(timeline)
        principal = asked.leash.principal if asked.leash is not None else None
        self.refused(error, asked.method, asked.raw_path, asked.client, asked.request_id, principal)

    def refused(
        self,
        error: GatewayError,
        method: str,
        path: str,
        client: str | None,
        request_id: str,
        principal: Any = None,
    ) -> None:
        """Put the caller's own faults into the audit log; the gateway's are in the other log."""
        self.observer.metrics.refused(error.code)
        if not isinstance(error, CallerError) or isinstance(error, ClientStalled):
            return
        refusal = Refusal(
            code=error.code,
            status=error.status,
            method=method,
            path=_SECRET.sub("…", unquote(path)),
            request_id=request_id,
            client=client,
            tenant_id=principal.tenant.id if principal else None,
            key_id=principal.key.id if principal else None,
        )
        self.audit.record(refusal)

    def begin_drain(self) -> None:
        """Be not ready from now on; refuse new calls when kept connections were given up.

        What is still under way when the drain time is over is cut.
        """
        if not self.draining:
            self.draining = True
            self.engine.stop()
            self.observer.metrics.drain_begun()
            log.info("drain_begun", calls=len(self.live))
            self.nursery.start_soon(self._drain)

    async def _drain(self) -> None:
        ends = trio.current_time() + self.settings.drain_timeout
        await trio.sleep(min(PARTING + LATE, self.settings.drain_timeout))
        self.refusing.set()
        await trio.sleep_until(ends)
        self.cut_all()

    def cut_all(self) -> None:
        """Cut every call, and every line of a batch, with `shutting_down`."""
        self.draining = True
        self.refusing.set()
        self.engine.stop()
        cut = self.live.cut(self.live.keys(), ShuttingDown)
        self.observer.metrics.cut("drain", cut)
        if cut:
            log.info("calls_cut", calls=cut)
