"""/admin/v1/workers, backends, calls and health: what runs just now, on every machine."""

import os
from datetime import datetime
from time import perf_counter
from typing import Any, Literal

from pydantic import Field

from trio_gateway import __version__
from trio_gateway.clients.postgres import NotMigrated
from trio_gateway.clients.schema import SCHEMA_VERSION
from trio_gateway.core.errors import StoreUnavailable
from trio_gateway.web.admin.api.owners import tenant_id
from trio_gateway.web.admin.api.sections import Section, actor
from trio_gateway.web.admin.api.shapes import Answer, Name, Query, Whole
from trio_gateway.web.admin.guard import officer
from trio_gateway.web.admin.office import office

section = Section("fleet")

PATIENCE = 3.0  # seconds for PostgreSQL to answer
_VERSION = "SELECT version_num FROM gateway.alembic_version"


class Backend(Answer):
    """An Ollama as one worker sees it; `models` is null where none was heard of lately."""

    host: str
    healthy: bool
    in_flight: int
    slots: int
    models: int | None


class Place(Answer):
    """One worker."""

    host: str
    slot: str
    pid: int


class Worker(Place):
    """A worker's last report, at most some seconds old; `missing` keeps it from serving."""

    version: str
    started_at: datetime
    reported_at: datetime
    missing: list[str]
    calls: int
    in_flight: int
    waiting: int
    queue_limit: int
    unsettled: int
    ledger_backlog: int
    audit_waiting: int
    backends: list[Backend]


class WorkersBackend(Backend):
    """A backend and the worker that reports of it."""

    worker: Place


class CallsQuery(Query):
    """Calls of everybody or of one tenant."""

    tenant: Name | None = None


class Call(Answer):
    """An admitted call. Tokens are units, but `output_tokens`, which may be a second old."""

    request_id: str
    tenant_id: str
    tenant: str | None
    key_id: str
    key: str | None
    model: str
    endpoint: str
    phase: str
    started_at: datetime
    output_tokens: int
    held_tokens: int
    batch_id: str | None


class Store(Answer):
    """Whether a store answers, and how fast; `note` says what is wrong."""

    ok: bool
    ms: float | None
    note: str | None = None


class Health(Answer):
    """`ok` where both stores answer and every worker serves."""

    ok: bool
    postgres: Store
    redis: Store
    workers: int
    missing: dict[str, list[str]] = Field(description="What keeps which worker from serving.")


class Status(Answer):
    """What runs here, and as whom the caller is known."""

    version: str
    supervisor_pid: int
    name: str
    role: Literal["admin", "viewer", "metrics"]


@section.get("/status", Status)
async def status() -> Any:
    """Say what runs here, and as whom the caller is known."""
    found = officer()
    return Status(
        version=__version__, supervisor_pid=os.getppid(), name=found.name, role=found.role.value
    )


@section.get("/health", Health)
async def health() -> Any:
    """Ask both stores, and look at the workers' reports."""
    postgres, redis = await _postgres(), await _redis()
    reports = await office().workers.listing() if redis.ok else []
    missing = {_name(report): report["missing"] for report in reports if report["missing"]}
    return Health(
        ok=postgres.ok and redis.ok and bool(reports) and not missing,
        postgres=postgres,
        redis=redis,
        workers=len(reports),
        missing=missing,
    )


@section.get("/workers", Whole[Worker])
async def list_workers() -> Any:
    """List the workers that report, by machine and slot."""
    return {"data": await office().workers.listing()}


@section.get("/backends", Whole[WorkersBackend])
async def list_backends() -> Any:
    """List the backends of each worker; slots count per worker."""
    reports = await office().workers.listing()
    rows = [{**each, "worker": report} for report in reports for each in report["backends"]]
    return {"data": sorted(rows, key=lambda row: str(row["host"]))}


@section.get("/calls", Whole[Call], query=CallsQuery)
async def list_calls(query: CallsQuery) -> Any:
    """List the calls under way on every machine, the oldest first, at most 2,000."""
    return {"data": await office().calls.listing(await tenant_id(query.tenant))}


@section.post("/calls/<request_id>/cut", Call)
async def cut_call(request_id: str) -> Any:
    """End one call wherever it runs; its caller sees the error `call_cut`."""
    return await office().calls.cut(request_id, actor())


def _name(report: dict[str, Any]) -> str:
    return f"{report['host']}/{report['slot'] or report['pid']}"


async def _postgres() -> Store:
    began = perf_counter()
    try:
        row = await office().postgres.glance(PATIENCE, _VERSION)
    except NotMigrated:
        return Store(ok=False, ms=None, note="is not migrated")
    except StoreUnavailable:
        return Store(ok=False, ms=None, note="does not answer")
    ms = _since(began)
    if row is None or row["version_num"] != SCHEMA_VERSION:
        return Store(ok=False, ms=ms, note="is at another release's schema")
    return Store(ok=True, ms=ms)


async def _redis() -> Store:
    began = perf_counter()
    try:
        await office().redis.command("PING")
    except StoreUnavailable:
        return Store(ok=False, ms=None, note="does not answer")
    return Store(ok=True, ms=_since(began))


def _since(began: float) -> float:
    return round((perf_counter() - began) * 1000, 2)
