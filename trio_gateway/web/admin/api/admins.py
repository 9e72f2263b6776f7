"""/admin/v1/admins and sessions: who may use this listener."""

from datetime import datetime
from typing import Any, Literal

from pydantic import Field

from trio_gateway.web.admin.api.sections import Section, actor, books, made
from trio_gateway.web.admin.api.shapes import Answer, Body, Change, Gone, Instant, Whole
from trio_gateway.web.admin.office import office

section = Section("admins")

MOST_SESSIONS = 1000
RoleName = Literal["admin", "viewer", "metrics"]


class AdminCreate(Body):
    """An admin to be."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._@-]{0,62}$")
    role: RoleName
    expires_at: Instant | None = None


class AdminChange(Change):
    """What can be changed of an admin."""

    role: RoleName = "viewer"
    expires_at: Instant | None = Field(None, description="Null: never. A past one ends it now.")


class Admin(Answer):
    """An admin."""

    id: str
    name: str
    role: RoleName
    state: Literal["active", "disabled", "expired"]
    expires_at: datetime | None
    disabled_at: datetime | None
    created_at: datetime
    updated_at: datetime


class NewAdmin(Admin):
    """An admin with the token, which is shown this once."""

    token: str


class Session(Answer):
    """A session of the dashboard; its id is no secret."""

    id: str
    name: str
    role: RoleName
    client: str | None
    created_at: datetime
    seen_at: datetime
    expires_at: datetime


@section.get("/admins", Whole[Admin], secret=True)
async def list_admins() -> Any:
    """List admins by name, never their tokens."""
    return {"data": await books().admins.listing()}


@section.post("/admins", NewAdmin, body=AdminCreate, status=201, conflicts=True)
async def create_admin(body: AdminCreate) -> Any:
    """Add an admin and show the token, once."""
    row = await books().admins.create(body.name, body.role, body.expires_at)
    return made(NewAdmin.model_validate(row), f"/admins/{row['id']}")


@section.get("/admins/<admin>", Admin, secret=True)
async def show_admin(admin: str) -> Any:
    """Show an admin, by name or id."""
    return await books().admins.show(admin)


@section.patch("/admins/<admin>", Admin, body=AdminChange, conflicts=True)
async def assign_admin(admin: str, body: AdminChange) -> Any:
    """Change an admin's role or expiry, from the next request on; with the role sessions end."""
    return await books().admins.update(admin, body.given())


@section.post("/admins/<admin>/rotate", NewAdmin, conflicts=True)
async def rotate_admin(admin: str) -> Any:
    """Give an admin a new token, and show it once; the old one and its sessions end at once."""
    return await books().admins.rotate(admin)


@section.post("/admins/<admin>/disable", Admin, conflicts=True)
async def disable_admin(admin: str) -> Any:
    """Refuse an admin's token and end the sessions; the last active admin stays."""
    return await books().admins.disable(admin)


@section.post("/admins/<admin>/enable", Admin)
async def enable_admin(admin: str) -> Any:
    """Let a disabled admin's token work again."""
    return await books().admins.enable(admin)


@section.delete("/admins/<admin>", Gone, conflicts=True)
async def delete_admin(admin: str) -> Any:
    """Remove an admin and end the sessions; the last active admin stays."""
    return await books().admins.delete(admin)


@section.get("/sessions", Whole[Session], secret=True)
async def list_sessions() -> Any:
    """List the dashboard's open sessions, those seen last first, at most 1,000."""
    return {"data": await office().sessions.listing(MOST_SESSIONS)}


@section.delete("/sessions/<session>", Gone)
async def end_session(session: str) -> Any:
    """End a session of the dashboard."""
    found = await office().sessions.revoke(session, actor())
    return {"id": session, "name": found["name"]}
