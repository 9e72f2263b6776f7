"""`ledger verify`, opened with both stores."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from trio_gateway.cli.door import Failure
from trio_gateway.cli.redis_line import open_redis
from trio_gateway.core.errors import StoreUnavailable
from trio_gateway.services.ledger.verify import verify

if TYPE_CHECKING:
    from trio_gateway.cli.session import Desk


async def compare(desk: Desk) -> dict[str, Any]:
    """Return `{"ok", "checked", "holds_open", "differences"}`."""
    async with open_redis(desk.addresses.required_redis_url()) as redis:
        try:
            return await verify(desk.postgres, redis)
        except StoreUnavailable as error:
            if redis.connected:
                raise
            raise Failure("Redis went away while the books were compared") from error
