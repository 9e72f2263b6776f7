"""/admin/v1/webhooks and notices: what is sent when a budget nears its end, and where to."""

from datetime import date, datetime
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from trio_gateway.web.admin.api.owners import tenant_id
from trio_gateway.web.admin.api.paging import numbered, page
from trio_gateway.web.admin.api.sections import Section, books, made
from trio_gateway.web.admin.api.shapes import (
    PAGE,
    Answer,
    Body,
    Change,
    Gone,
    Instant,
    Limit,
    Name,
    Page,
    Paged,
    Query,
    Whole,
    digits,
)

section = Section("webhooks")


class WebhookChange(Change):
    """What can be changed of a webhook."""

    url: str = Field("", min_length=1, max_length=2000)
    tenant: Name | None = Field(None, description="Null: the notices of every tenant.")
    disabled: bool = False


class WebhookCreate(Body):
    """A webhook to be; its host must be on the allowlist."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$")
    url: str = Field(min_length=1, max_length=2000)
    tenant: Name | None = Field(None, description="Null: the notices of every tenant.")


class Webhook(Answer):
    """A webhook; `waiting` are the deliveries that have yet to end."""

    id: str
    name: str
    url: str
    tenant_id: str | None
    tenant: str | None
    waiting: int
    disabled_at: datetime | None
    created_at: datetime
    updated_at: datetime


class NewWebhook(Webhook):
    """A webhook with the secret that signs what it sends, which is shown this once."""

    secret: str


class Delivery(Answer):
    """One message and how far it is."""

    id: int
    state: Literal["waiting", "delivered", "given_up"]
    attempts: int
    status_code: int | None
    error: str | None
    message_id: str | None = None
    notice_id: int | None = None
    created_at: datetime | None = None
    next_at: datetime | None = None
    ended_at: datetime | None = None


class ShownWebhook(Webhook):
    """A webhook and its latest deliveries."""

    deliveries: list[Delivery]


class NoticeList(Paged):
    """Notices, the latest first."""

    limit: Annotated[int, Field(ge=1, le=500), BeforeValidator(digits)] = PAGE
    tenant: Name | None = None
    threshold: Literal["80", "100"] | None = None
    since: Instant | None = None


class CurrentQuery(Query):
    """Those that are spent come first."""

    limit: Limit = 100


class Current(Answer):
    """A budget near its end; a null key means the tenant's own, a null start a total's."""

    id: int
    at: datetime
    tenant_id: str
    tenant: str | None
    key_id: str | None
    key: str | None
    threshold: int
    period: str
    period_start: date | None
    budget: int
    spent: int


class Notice(Current):
    """A budget that came near its end, and how many deliveries tell of it."""

    deliveries: dict[str, int]


@section.get("/webhooks", Whole[Webhook])
async def list_webhooks() -> Any:
    """List webhooks by name."""
    return {"data": await books().webhooks.listing()}


@section.post("/webhooks", NewWebhook, body=WebhookCreate, status=201, conflicts=True)
async def create_webhook(body: WebhookCreate) -> Any:
    """Add a webhook and show its secret, once."""
    row = await books().webhooks.create(body.name, body.url, body.tenant)
    return made(NewWebhook.model_validate(row), f"/webhooks/{row['id']}")


@section.get("/webhooks/<webhook>", ShownWebhook)
async def show_webhook(webhook: str) -> Any:
    """Show a webhook and its latest deliveries."""
    return await books().webhooks.show(webhook)


@section.patch("/webhooks/<webhook>", Webhook, body=WebhookChange)
async def update_webhook(webhook: str, body: WebhookChange) -> Any:
    """Change, disable or enable a webhook."""
    return await books().webhooks.update(webhook, body.given())


@section.post("/webhooks/<webhook>/rotate", NewWebhook)
async def rotate_webhook(webhook: str) -> Any:
    """Give a webhook a new secret, and show it once; it signs from the next attempt on."""
    return await books().webhooks.rotate(webhook)


@section.post("/webhooks/<webhook>/test", Delivery, conflicts=True)
async def test_webhook(webhook: str) -> Any:
    """Have a test message sent, and say how far it is."""
    return await books().webhooks.test(webhook)


@section.delete("/webhooks/<webhook>", Gone)
async def delete_webhook(webhook: str) -> Any:
    """Remove a webhook, with what it had yet to send."""
    return await books().webhooks.delete(webhook)


@section.get("/notices", Page[Notice], query=NoticeList)
async def list_notices(query: NoticeList) -> Any:
    """List the notices of budgets that came near their end."""
    threshold = None if query.threshold is None else int(query.threshold)
    owner = await tenant_id(query.tenant)
    rows = await books().notices.listing(
        owner, threshold, query.since, numbered(query.cursor), query.limit + 1
    )
    return page(rows, query.limit, lambda row: row["id"])


@section.get("/notices/current", Whole[Current], query=CurrentQuery)
async def list_current_notices(query: CurrentQuery) -> Any:
    """List the budgets that are near their end now, those that are spent first."""
    return {"data": await books().notices.current(query.limit)}
