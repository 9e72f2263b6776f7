"""`ledger verify`, opened with both stores."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from trio_gateway.cli.session import open_redis

if TYPE_CHECKING:
    from trio_gateway.cli.session import Desk

VERIFY = "trio_gateway.services.ledger.verify"


async def compare(desk: Desk) -> dict[str, Any]:
    """Return `{"ok", "checked", "holds_open", "differences"}`."""
    verify = import_module(VERIFY).verify
    async with open_redis(desk.bridge, desk.addresses.required_redis_url()) as redis:
        found: dict[str, Any] = await verify(desk.postgres, redis)
    return found
