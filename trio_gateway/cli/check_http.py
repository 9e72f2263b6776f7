"""One bounded GET for the doctor: no redirects, no proxies of the environment, no credentials."""

from __future__ import annotations

import http.client
import json
import math
from dataclasses import dataclass
from functools import partial
from typing import Any
from urllib.parse import urlsplit

import trio

LIMIT = 2.5  # seconds, so that a check has its own words for silence
MOST = 65_536  # bytes of a body
_THREADS = trio.CapacityLimiter(math.inf)  # a probe that waits for a thread would look silent


@dataclass(frozen=True)
class Answer:
    """A status, and the body as JSON where it is a JSON object; else an empty one."""

    status: int
    fields: dict[str, Any]


async def get(url: str) -> Answer | None:
    """Return what answers at `url` in time; None where nothing that speaks HTTP does."""
    with trio.move_on_after(LIMIT):
        return await trio.to_thread.run_sync(
            partial(_get, url), abandon_on_cancel=True, limiter=_THREADS
        )
    return None


def _get(url: str) -> Answer | None:
    try:
        parts = urlsplit(url)
        secure = parts.scheme == "https"
        kind = http.client.HTTPSConnection if secure else http.client.HTTPConnection
        connection = kind(parts.hostname or "", parts.port, timeout=LIMIT)
    except ValueError:
        return None
    try:
        connection.request("GET", parts.path)
        response = connection.getresponse()
        return Answer(response.status, _fields(response.read(MOST)))
    except (OSError, http.client.HTTPException, ValueError):
        return None
    finally:
        connection.close()


def _fields(body: bytes) -> dict[str, Any]:
    try:
        found = json.loads(body)
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}
