"""Whose rows are asked for: names become ids, and what is gone may be asked for by its id."""

from __future__ import annotations

from typing import TYPE_CHECKING

from trio_gateway.services.account_rows import NotFound
from trio_gateway.web.admin.api.sections import books

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable


async def tenant_id(name: str | None) -> str | None:
    """Return a tenant's id; raises NotFound for a name that nobody has."""
    return await _id(name, "ten_", books().accounts.show)


async def key_id(name: str | None, tenant: str | None = None) -> str | None:
    """Return a key's id; raises NotFound, and Refused for a name that several have."""
    return await _id(name, "key_", lambda given: books().keyring.show(given, tenant))


async def _id(
    name: str | None, prefix: str, find: Callable[[str], Awaitable[dict[str, str]]]
) -> str | None:
    if name is None:
        return None
    try:
        return (await find(name))["id"]
    except NotFound:
        if name.startswith(prefix):
            return name
        raise
