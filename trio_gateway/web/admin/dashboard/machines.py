"""Backends and workers as they report themselves, and the health of the stores seen from here."""

from __future__ import annotations

from typing import Any

import trio
from quart import Blueprint, Response

from trio_gateway.clients.schema import SCHEMA_VERSION
from trio_gateway.web.admin.dashboard.shell import page
from trio_gateway.web.admin.dashboard.together import POSTGRES, REDIS, together
from trio_gateway.web.admin.office import office

_ASK = "SELECT current_setting('server_version') AS server"

blueprint = Blueprint("machines", __name__)


@blueprint.get("/backends")
async def backends() -> Response:
    """Show every Ollama, and what each worker says of it."""
    found, missing = await together(workers=(REDIS, office().workers.listing))
    workers = found["workers"] or []
    return await page(
        "backends.html",
        503 if missing else 200,
        missing=missing,
        workers=workers,
        hosts=_hosts(workers),
    )


@blueprint.get("/health")
async def health() -> Response:
    """Show stores, workers and what waits to be written."""
    found, missing = await together(
        postgres=(POSTGRES, _timed_postgres),
        redis=(REDIS, _timed_redis),
        workers=(REDIS, office().workers.listing),
    )
    return await page(
        "health.html",
        503 if missing else 200,
        missing=missing,
        postgres=found["postgres"],
        redis=found["redis"],
        workers=found["workers"],
        schema=SCHEMA_VERSION,
    )


async def _timed_postgres() -> dict[str, Any]:
    began = trio.current_time()
    row = await office().postgres.fetch_one(_ASK)
    took = (trio.current_time() - began) * 1000
    return {"took": took, **(row or {})}


async def _timed_redis() -> dict[str, Any]:
    began = trio.current_time()
    text = await office().redis.command("INFO", "server")
    took = (trio.current_time() - began) * 1000
    lines = dict(line.split(":", 1) for line in text.decode().splitlines() if ":" in line)
    return {"took": took, "server": lines.get("redis_version", "")}


def _hosts(workers: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Sum what workers say of each backend."""
    hosts: dict[str, dict[str, Any]] = {}
    for worker in workers:
        for backend in worker["backends"]:
            host = hosts.setdefault(
                backend["host"],
                {"host": backend["host"], "in_flight": 0, "slots": 0, "workers": 0, "healthy": 0},
            )
            host["in_flight"] += backend["in_flight"]
            host["slots"] += backend["slots"]
            host["workers"] += 1
            host["healthy"] += bool(backend["healthy"])
            host["models"] = max(host.get("models") or 0, backend["models"] or 0)
    return sorted(hosts.values(), key=lambda host: str(host["host"]))
