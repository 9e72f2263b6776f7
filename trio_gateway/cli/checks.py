"""The doctor's examination, in the order in which one failure explains the next."""

from __future__ import annotations

import http.client
import json
import re
import shutil
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import trio

from trio_gateway import datadir
from trio_gateway.cli.addresses import find
from trio_gateway.cli.check_postgres import check_postgres
from trio_gateway.cli.check_redis import check_redis
from trio_gateway.cli.door import Failure
from trio_gateway.cli.finding import Finding, fail, ok, warn
from trio_gateway.cli.session import interruptible
from trio_gateway.clients.bridge import open_bridge

if TYPE_CHECKING:
    from trio_gateway.cli.addresses import Addresses

OLLAMA_LIMIT = 3.0  # seconds
OLDEST_OLLAMA = (0, 17, 1)
MEBIBYTE = 1024 * 1024


def examine(data_dir: Path | None) -> list[dict[str, Any]]:
    """Return findings as dicts; see Finding."""
    try:
        addresses = find(data_dir)
    except Failure as error:
        advice = "Correct what it names, or start an installation; see --help."
        return [asdict(fail("settings", str(error), advice))]
    with interruptible():
        found = [ok("settings", "understood"), *trio.run(_examine, addresses)]
    return [asdict(finding) for finding in (*found, _disk(data_dir))]


async def _examine(addresses: Addresses) -> list[Finding]:
    given = addresses.settings
    found: list[Finding] = []
    sees_models = False
    async with open_bridge() as bridge:
        if given.database_url:
            found += await check_postgres(bridge, addresses)
        else:
            found.append(fail("postgres", "DATABASE_URL is not set", "Set it beside REDIS_URL."))
        if given.redis_url:
            more, sees_models = await check_redis(given.redis_url)
            found += more
        else:
            found.append(fail("redis", "REDIS_URL is not set", "Set it beside DATABASE_URL."))
        for url in given.backends:
            found.append(await _backend(url, sees_models=sees_models))
    return found


async def _backend(url: str, *, sees_models: bool) -> Finding:
    check = f"ollama {urlsplit(url).netloc.rpartition('@')[2]}"
    version = await trio.to_thread.run_sync(partial(_version, url), abandon_on_cancel=True)
    if version is not None:
        numbers = tuple(int(number) for number in re.findall(r"\d+", version)[:3])
        # a build from source calls itself 0.0.0
        if numbers == (0, 0, 0) or numbers >= OLDEST_OLLAMA:
            return ok(check, f"version {version}")
        advice = "Upgrade to 0.17.1 or later: older ones have known security faults."
        return warn(check, f"version {version} is old", advice)
    if sees_models:
        detail = "does not answer from here, but the running gateway sees models"
        return warn(check, detail, "Set OLLAMA_BASE_URL here to what the gateway was given.")
    advice = "Start Ollama, or correct OLLAMA_BASE_URL."
    return fail(check, "does not answer /api/version", advice)


def _version(url: str) -> str | None:
    parts = urlsplit(url)
    secure = parts.scheme == "https"
    kind = http.client.HTTPSConnection if secure else http.client.HTTPConnection
    connection = kind(parts.hostname or "", parts.port, timeout=OLLAMA_LIMIT)
    try:
        connection.request("GET", parts.path.rstrip("/") + "/api/version")
        answer = json.loads(connection.getresponse().read(4096))
        return str(answer["version"])[:40]
    except (OSError, http.client.HTTPException, ValueError, KeyError, TypeError):
        return None
    finally:
        connection.close()


def _disk(data_dir: Path | None) -> Finding:
    folder = (data_dir or datadir.default_path()).expanduser()
    if not folder.is_dir():
        folder = Path.cwd()
    free = shutil.disk_usage(folder).free // MEBIBYTE
    detail = f"{free:,} MiB free at {folder}"
    if free >= 1024:
        return ok("disk", detail)
    advice = "Make room: a full disk stops the stores."
    return fail("disk", detail, advice) if free < 100 else warn("disk", detail, advice)
