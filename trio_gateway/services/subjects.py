"""What acts are recorded of, by name or id: names become ids, and a model goes by any spelling."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from trio_gateway.core.models import InvalidModelName, canonical
from trio_gateway.services.account_rows import NotFound, printable, storable
from trio_gateway.services.names import is_id

if TYPE_CHECKING:
    from trio_gateway.clients.postgres import Connection

MOST = 50  # keys of one name
_NAMED = f"""
SELECT id FROM gateway.tenants WHERE name = $1
UNION ALL SELECT id FROM gateway.admins WHERE name = $1
UNION ALL SELECT id FROM gateway.webhooks WHERE name = $1
UNION ALL (SELECT id FROM gateway.api_keys WHERE name = $1 AND name <> '' LIMIT {MOST})
UNION ALL SELECT id FROM gateway.api_keys WHERE public_id = $1 OR previous_public_id = $1
"""  # noqa: S608 - constants alone
_KNOWN = """
SELECT EXISTS (SELECT FROM gateway.admin_events WHERE subject = ANY($1::text[]))
    OR EXISTS (SELECT FROM gateway.tenants WHERE id = $2)
    OR EXISTS (SELECT FROM gateway.api_keys WHERE id = $2)
    OR EXISTS (SELECT FROM gateway.admins WHERE id = $2)
    OR EXISTS (SELECT FROM gateway.webhooks WHERE id = $2)
"""


async def subjects_of(connection: Connection, text: str) -> list[str]:
    """Return what the record may call whatever goes by this name or id; an asyncio function.

    Raises NotFound where nothing does, and nothing of the kind is on record. What is gone goes
    by its id.
    """
    text = storable(text)
    words = {text}
    with contextlib.suppress(InvalidModelName):
        words.add(canonical(text).full)
    named = [] if is_id(text) else await connection.fetch(_NAMED, text)
    if not named and not await connection.fetchval(_KNOWN, list(words), text):
        raise NotFound(f"nothing is called {printable(text)}, now or on record", "subject")
    return sorted(words | {row["id"] for row in named})
