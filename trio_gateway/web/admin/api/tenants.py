"""/admin/v1/tenants: who pays, what they may use and how much."""

from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, computed_field

from trio_gateway.services.accounts import KEYS_COUNTED
from trio_gateway.web.admin.api.accounts import Extension, Limited, Limits, Models
from trio_gateway.web.admin.api.paging import after, named, page
from trio_gateway.web.admin.api.sections import Section, books, made
from trio_gateway.web.admin.api.shapes import Change, Gone, Page, Paged, Text

section = Section("tenants")

Share = Annotated[int, Field(ge=1, le=1000)]
TenantName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$")]


class TenantList(Paged):
    """Tenants by name."""

    match: Text = Field("", description="A part of the name, in any case.")


class TenantChange(Change, Limits):
    """What can be changed of a tenant."""

    name: TenantName = ""
    all_models: Annotated[
        bool, Field(description="Off where `models` is named and this is not.")
    ] = False
    models: Models = Field(default_factory=list, description="None may be named beside all.")
    allow_cloud: bool = False
    weight_share: Share = 1

    def columns(self) -> dict[str, Any]:
        """Name models, and it is these alone; ask for all, and none is named."""
        values = super().columns()
        if "models" in values and "all_models" not in values:
            values["all_models"] = False
        if values.get("all_models"):
            values.setdefault("models", [])
        return values


class TenantCreate(TenantChange):
    """A tenant to be."""

    model_config = ConfigDict(json_schema_extra={})

    name: TenantName


class Tenant(Limited):
    """A tenant."""

    id: str
    name: str
    all_models: bool
    models: list[str]
    allow_cloud: bool
    weight_share: int

    @computed_field  # type: ignore[prop-decorator]
    @property
    def state(self) -> Literal["active", "disabled"]:
        """Whether its keys are honored."""
        return "active" if self.disabled_at is None else "disabled"


class ListedTenant(Tenant):
    """A tenant, and how many keys it has."""

    keys: int = Field(description=f"Counted up to {KEYS_COUNTED}, which may mean more.")


class ShownTenant(Tenant):
    """A tenant, and what its present budget period was charged."""

    spent: int


@section.get("/tenants", Page[ListedTenant], query=TenantList)
async def list_tenants(query: TenantList) -> dict[str, Any]:
    """List tenants by name."""
    rows = await books().accounts.listing(query.match, query.limit + 1, named(query.cursor))
    return page(rows, query.limit, lambda row: after(row["name"]))


@section.post("/tenants", Tenant, body=TenantCreate, status=201, conflicts=True)
async def create_tenant(body: TenantCreate) -> Any:
    """Add a tenant; without `models` or `all_models` it may use none."""
    values = body.columns()
    row = await books().accounts.create(values.pop("name"), values)
    return made(Tenant.model_validate(row), f"/tenants/{row['id']}")


@section.get("/tenants/<tenant>", ShownTenant)
async def show_tenant(tenant: str) -> Any:
    """Show a tenant, and what it spent in its present period."""
    return await books().accounts.show(tenant)


@section.patch("/tenants/<tenant>", Tenant, body=TenantChange, conflicts=True)
async def update_tenant(tenant: str, body: TenantChange) -> Any:
    """Change a tenant; it holds from the next call on. Its id, and what is booked, stay."""
    return await books().accounts.update(tenant, body.columns())


@section.post("/tenants/<tenant>/disable", Tenant)
async def disable_tenant(tenant: str) -> Any:
    """Refuse a tenant's keys and cut its calls, until it is enabled again."""
    return await books().accounts.disable(tenant)


@section.post("/tenants/<tenant>/enable", Tenant)
async def enable_tenant(tenant: str) -> Any:
    """Let a disabled tenant's keys work again."""
    return await books().accounts.enable(tenant)


@section.post("/tenants/<tenant>/extension", Tenant, body=Extension)
async def extend_tenant(tenant: str, body: Extension) -> Any:
    """Add tokens to a tenant's budget for a while; an earlier increase is replaced."""
    return await books().accounts.extend(tenant, body.tokens, body.end)


@section.delete("/tenants/<tenant>/extension", Tenant)
async def end_tenant_extension(tenant: str) -> Any:
    """End an increase now; without one nothing changes."""
    return await books().accounts.end_extension(tenant)


@section.delete("/tenants/<tenant>", Gone, conflicts=True)
async def delete_tenant(tenant: str) -> Any:
    """Remove a tenant and its keys, and cut its calls; the ledger keeps its rows.

    A tenant that has files, or batches under way, is refused.
    """
    return await books().accounts.delete(tenant)
