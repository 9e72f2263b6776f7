"""/admin/v1/keys: what callers present, never to be seen again but where it is made."""

from datetime import datetime, timedelta
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field

from trio_gateway.web.admin.api.accounts import Extension, Limited, Limits, Models
from trio_gateway.web.admin.api.paging import page
from trio_gateway.web.admin.api.sections import Section, books, made
from trio_gateway.web.admin.api.shapes import (
    Body,
    Change,
    Future,
    Instant,
    Name,
    Page,
    Paged,
    Query,
    Text,
)

section = Section("keys")

DAY = 86_400
OVERLAP = 365 * DAY


class KeyList(Paged):
    """Keys by tenant and age."""

    tenant: Name | None = Field(None, description="Only this tenant's, by name or id.")
    match: Text = Field("", description="A part of the key's name, in any case.")


class Whose(Query):
    """Tells keys of one name apart."""

    tenant: Name | None = Field(None, description="The tenant whose key it is, by name or id.")


class KeyChange(Change, Limits):
    """What can be changed of a key; models and limits can only narrow its tenant's."""

    name: Text = Field("", description="May be empty: a key goes by its id as well.")
    models: Models | None = Field(None, description="Null: all that the tenant may use.")
    expires_at: Instant | None = None


class KeyCreate(KeyChange):
    """A key to be."""

    model_config = ConfigDict(json_schema_extra={})

    tenant: Name = Field(description="Whose key it is to be, by name or id.")
    expires_at: Future | None = None


class Rotation(Body):
    """How long the replaced key goes on; 0 ends it at once."""

    overlap_seconds: Annotated[int, Field(ge=0, le=OVERLAP)] = DAY


class Revocation(Body):
    """Why."""

    reason: Annotated[str, Field(max_length=1000)] = ""


class Key(Limited):
    """A key, but not the key itself."""

    id: str
    public_id: str
    tenant: str
    tenant_id: str
    name: str
    last4: str
    state: Literal["active", "disabled", "expired", "revoked"]
    models: list[str] | None
    expires_at: datetime | None
    revoked_at: datetime | None
    previous_public_id: str | None
    previous_expires_at: datetime | None


class ShownKey(Key):
    """A key, and what its present budget period was charged."""

    spent: int


class NewKey(Key):
    """A key with its whole text, which is shown this once."""

    key: str


@section.get("/keys", Page[Key], query=KeyList)
async def list_keys(query: KeyList) -> dict[str, Any]:
    """List keys by tenant and age, never the keys themselves."""
    rows = await books().keyring.listing(query.tenant, query.match, query.limit + 1, query.cursor)
    return page(rows, query.limit, lambda row: row["id"])


@section.get("/tenants/<tenant>/keys", Page[Key], query=Paged)
async def list_keys_of_tenant(tenant: str, query: Paged) -> dict[str, Any]:
    """List a tenant's keys by age."""
    rows = await books().keyring.listing(tenant, "", query.limit + 1, query.cursor)
    return page(rows, query.limit, lambda row: row["id"])


@section.post("/keys", NewKey, body=KeyCreate, status=201)
async def create_key(body: KeyCreate) -> Any:
    """Make a key and show it, once."""
    values = body.columns()
    row = await books().keyring.issue(values.pop("tenant"), values)
    return made(NewKey.model_validate(row), f"/keys/{row['id']}")


@section.get("/keys/<path:key>", ShownKey, query=Whose)
async def show_key(key: str, query: Whose) -> Any:
    """Show a key, by id, public id or name, and what it spent in its present period."""
    return await books().keyring.show(key, query.tenant)


@section.patch("/keys/<path:key>", Key, query=Whose, body=KeyChange, conflicts=True)
async def update_key(key: str, query: Whose, body: KeyChange) -> Any:
    """Change a key; new limits hold from the next call on.

    Of a revoked key the name alone can be changed.
    """
    return await books().keyring.update(key, body.columns(), query.tenant)


@section.post("/keys/<path:key>/rotate", NewKey, query=Whose, body=Rotation, conflicts=True)
async def rotate_key(key: str, query: Whose, body: Rotation) -> Any:
    """Give a key a new secret, and show it once; id, limits and counters stay.

    What an earlier rotation replaced ends at once.
    """
    overlap = timedelta(seconds=body.overlap_seconds)
    return await books().keyring.rotate(key, overlap, query.tenant)


@section.post("/keys/<path:key>/disable", Key, query=Whose, conflicts=True)
async def disable_key(key: str, query: Whose) -> Any:
    """Refuse a key and cut its calls, until it is enabled again."""
    return await books().keyring.disable(key, query.tenant)


@section.post("/keys/<path:key>/enable", Key, query=Whose, conflicts=True)
async def enable_key(key: str, query: Whose) -> Any:
    """Let a disabled key work again; a revoked one is refused."""
    return await books().keyring.enable(key, query.tenant)


@section.post("/keys/<path:key>/revoke", Key, query=Whose, body=Revocation)
async def revoke_key(key: str, query: Whose, body: Revocation) -> Any:
    """Refuse a key for good, within a second, and cut its calls."""
    return await books().keyring.revoke(key, query.tenant, body.reason)


@section.post("/keys/<path:key>/extension", Key, query=Whose, body=Extension, conflicts=True)
async def extend_key(key: str, query: Whose, body: Extension) -> Any:
    """Add tokens to a key's budget for a while; its tenant's budget still counts beside it."""
    return await books().keyring.extend(key, body.tokens, body.end, query.tenant)


@section.delete("/keys/<path:key>/extension", Key, query=Whose, conflicts=True)
async def end_key_extension(key: str, query: Whose) -> Any:
    """End an increase now; without one nothing changes."""
    return await books().keyring.end_extension(key, query.tenant)
