"""/admin/v1/ledger: what was booked, call by call."""

import base64
import binascii
from collections.abc import AsyncGenerator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from pydantic import Field

from trio_gateway.core.domain import Outcome
from trio_gateway.core.errors import InvalidCall
from trio_gateway.services.ledger_pages import LedgerFilter, LedgerPages, Place
from trio_gateway.web.admin.api.exports import MEDIA, STEP, Format, export, wanted_format
from trio_gateway.web.admin.api.owners import key_id, tenant_id
from trio_gateway.web.admin.api.paging import malformed, page
from trio_gateway.web.admin.api.sections import Section
from trio_gateway.web.admin.api.shapes import (
    Answer,
    Instant,
    Millis,
    ModelName,
    Name,
    Page,
    Paged,
    Text,
)
from trio_gateway.web.admin.office import office

section = Section("ledger")


class LedgerQuery(Paged):
    """Rows, the newest first; `format` or Accept turn it into an export of all that match."""

    request_id: Text | None = Field(None, description="What `x-request-id` of the answer said.")
    tenant: Name | None = Field(None, description="By name or id.")
    key: Name | None = Field(None, description="By id, public id or name.")
    model: ModelName | None = None
    outcome: Outcome | None = None
    batch_id: Text | None = None
    since: Instant | None = None
    until: Instant | None = None
    format: Format | None = None


class LedgerRow(Answer):
    """One call. Tokens that were charged are weighed."""

    request_id: str
    started_at: datetime
    tenant_id: str
    tenant: str | None = Field(description="Null for a tenant that is gone.")
    key_id: str
    key: str | None
    endpoint: str
    model: str
    status_code: int
    outcome: str
    basis: str
    prompt_tokens: int
    completion_tokens: int
    charged_tokens: int
    held_tokens: int
    backend: str | None
    ttft_ms: Millis | None
    duration_ms: Millis
    batch_id: str | None


@section.get("/ledger", Page[LedgerRow], query=LedgerQuery, media=MEDIA)
async def list_ledger(query: LedgerQuery) -> Any:
    """List calls, or export them as CSV or JSON lines."""
    wanted = wanted_format(query)
    if query.since and query.until and query.since >= query.until:
        raise InvalidCall("'since' must be before 'until'.", param="since")
    mine = LedgerFilter(
        request_id=query.request_id,
        tenant_id=await tenant_id(query.tenant),
        key_id=await key_id(query.key, query.tenant),
        model=query.model,
        outcome=query.outcome,
        batch_id=query.batch_id,
        since=query.since,
        until=query.until,
    )
    pages = LedgerPages(office().postgres)
    if wanted != "json":
        return await export("ledger", LedgerRow, wanted, _all(pages, mine))
    before = None if query.cursor is None else _place(query.cursor)
    rows = await pages.listing(mine, query.limit + 1, before)
    return page(rows, query.limit, _cursor)


async def _all(
    pages: LedgerPages, mine: LedgerFilter
) -> AsyncGenerator[Sequence[Mapping[str, Any]], None]:
    before: Place | None = None
    while rows := await pages.listing(mine, STEP, before):
        yield rows
        if len(rows) < STEP:
            return
        before = (rows[-1]["started_at"], rows[-1]["request_id"])


def _cursor(row: Mapping[str, Any]) -> str:
    text = f"{row['started_at'].astimezone(UTC).isoformat()} {row['request_id']}"
    return base64.urlsafe_b64encode(text.encode()).decode()


def _place(cursor: str) -> Place:
    try:
        text = base64.urlsafe_b64decode(cursor.encode("ascii")).decode()
        at, _, request_id = text.partition(" ")
        started = datetime.fromisoformat(at).astimezone(UTC)
    except (binascii.Error, ValueError, OverflowError):
        raise malformed() from None
    if not 1970 <= started.year < 9000:
        raise malformed()
    return started, request_id
