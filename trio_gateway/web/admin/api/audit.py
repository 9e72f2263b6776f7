"""/admin/v1/audit: what operators changed, and what callers were refused."""

from datetime import datetime
from typing import Any

from pydantic import Field

from trio_gateway.web.admin.api.owners import tenant_id
from trio_gateway.web.admin.api.paging import numbered, page
from trio_gateway.web.admin.api.sections import Section, books
from trio_gateway.web.admin.api.shapes import Answer, Instant, Name, Page, Paged, Text

section = Section("audit")


class ActList(Paged):
    """Acts, the latest first."""

    since: Instant | None = None
    subject: Name | None = Field(
        None, description="What was changed, by name or id; what is gone goes by its id."
    )
    actor: Text | None = Field(None, description="Who did it, such as admin:eve.")
    action: Text | None = Field(None, description="What was done, such as key.revoke.")


class RefusalList(Paged):
    """Refusals, the latest first."""

    since: Instant | None = None
    tenant: Name | None = Field(None, description="Only of this tenant's keys, by name or id.")


class Act(Answer):
    """One change, with the rows before and after it; never a secret."""

    id: int
    at: datetime
    actor: str
    action: str
    subject: str
    before: dict[str, Any] | None
    after: dict[str, Any] | None


class Refusal(Answer):
    """Refusals before admission; identical ones share a row and a count."""

    id: int
    at: datetime
    last_at: datetime
    count: int
    code: str
    status_code: int
    method: str
    path: str
    client: str | None
    tenant_id: str | None
    key_id: str | None
    request_id: str


@section.get("/audit/acts", Page[Act], query=ActList)
async def list_acts(query: ActList) -> Any:
    """List what operators changed."""
    rows = await books().reports.acts(
        query.since,
        query.limit + 1,
        numbered(query.cursor),
        query.subject,
        actor=query.actor,
        action=query.action,
    )
    return page(rows, query.limit, lambda row: row["id"])


@section.get("/audit/refusals", Page[Refusal], query=RefusalList)
async def list_refusals(query: RefusalList) -> Any:
    """List what callers were refused."""
    owner = await tenant_id(query.tenant)
    rows = await books().reports.refusals(
        query.since, owner, query.limit + 1, numbered(query.cursor)
    )
    return page(rows, query.limit, lambda row: row["id"])
