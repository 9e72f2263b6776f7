"""What takes both stores to answer: `ledger verify` and `model list`."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Any

from trio_gateway.cli.door import Failure
from trio_gateway.cli.redis_line import open_redis
from trio_gateway.core.errors import StoreUnavailable
from trio_gateway.pipeline.verify import verify
from trio_gateway.services.catalog import discovered

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


async def survey(desk: Desk) -> tuple[list[dict[str, Any]], dict[str, str] | None]:
    """Return the policies, and the digests of what was discovered; None where Redis is away."""
    policies = await desk.models.listing()
    try:
        async with open_redis(desk.addresses.required_redis_url()) as redis:
            with suppress(StoreUnavailable):
                return policies, await discovered(redis)
    except Failure:
        pass  # the policies stand in PostgreSQL alone
    return policies, None
