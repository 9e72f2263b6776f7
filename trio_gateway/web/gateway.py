"""One worker as the web floor sees it: the wired services, and the few acts that need several."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

import structlog
import trio

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
    trusted: tuple[Any, ...] = ()
    berths: Berths = field(default_factory=Berths)
    draining: bool = field(default=False)

    def missing(self) -> list[str]:
        """Name what keeps this worker from admitting a call."""
        states = {
            "shutting down": self.draining,
            "postgres": not self.revocations.listening,
            "redis": not self.redis.connected,
        }
        return [name for name, bad in states.items() if bad]

    def client_of(self, scope: dict[str, Any]) -> str | None:
        """Return the client's address, past trusted proxies."""
        return client_address(scope, self.trusted)

    def refused_call(self, error: GatewayError, asked: Any) -> None:
        """Note a refusal of a request that had passed the screen."""
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
        """Refuse new calls from now on, and cut the others when their time is over."""
        if not self.draining:
            self.draining = True
            self.engine.stop()
            log.info("drain_begun", calls=len(self.live))
            self.nursery.start_soon(self._drain)

    async def _drain(self) -> None:
        await trio.sleep(self.settings.drain_timeout)
        self.cut_all()

    def cut_all(self) -> None:
        """Cut every call, and every line of a batch, with `shutting_down`."""
        self.draining = True
        self.engine.stop()
        cut = self.live.cut(self.live.keys(), ShuttingDown)
        if cut:
            log.info("calls_cut", calls=cut)
