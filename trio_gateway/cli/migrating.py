"""What `migrate` does once its options are read."""

from __future__ import annotations

import asyncio

from trio_gateway.cli.session import explained
from trio_gateway.core.errors import StoreUnavailable
from trio_gateway.migrate import current, upgrade


class Unmigrated(Exception):
    """Raised where the migrations cannot run; the text is one sentence."""


def bring_up(url: str) -> tuple[str | None, str]:
    """Migrate, and return the versions before and after; raises Unmigrated."""
    try:
        before = asyncio.run(current(url))
        return before, upgrade(url)
    except StoreUnavailable as error:
        raise Unmigrated(explained(error, url)) from error
    except ValueError as error:
        raise Unmigrated("DATABASE_URL is not a PostgreSQL address") from error
