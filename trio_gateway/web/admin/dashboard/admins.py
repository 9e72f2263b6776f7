"""Admins, their tokens and everybody's sessions: for the role admin alone."""

from __future__ import annotations

from datetime import datetime, timedelta
from functools import partial
from typing import Any, cast

from quart import Blueprint, Response, g

from trio_gateway.core.officers import Role
from trio_gateway.services.account_rows import Refused
from trio_gateway.web.admin.dashboard.forms import fields
from trio_gateway.web.admin.dashboard.shell import books, done, page
from trio_gateway.web.admin.dashboard.together import POSTGRES, together
from trio_gateway.web.admin.guard import officer, require
from trio_gateway.web.admin.office import office

ROLES = tuple(str(role) for role in Role)

blueprint = Blueprint("admins", __name__)


@blueprint.get("/admins")
async def listing() -> Response:
    """Show admins and sessions."""
    require(Role.ADMIN)
    return await _page()


@blueprint.post("/admins")
async def create() -> Response:
    """Add an admin and show the token, this once."""
    form = await fields()
    try:
        row = await books().admins.create(
            form.text("name", 63), form.choice("role", set(ROLES)), form.instant("expires_at")
        )
    except Refused as error:
        return await _page(form.written, error)
    return await _once(row, "The admin is there")


@blueprint.post("/admins/<name>/rotate")
async def rotate(name: str) -> Response:
    """Give an admin a new token and show it, this once; the sessions end."""
    return await _once(await books().admins.rotate(name), "The admin has a new token")


@blueprint.post("/admins/<name>/assign")
async def assign(name: str) -> Response:
    """Change an admin's role."""
    await books().admins.assign(name, (await fields()).choice("role", set(ROLES)))
    return done("admin.assign", "/admins")


@blueprint.post("/admins/<name>/<any(disable,enable,delete):act>")
async def switch(name: str, act: str) -> Response:
    """Refuse an admin's token, take it again, or remove the admin."""
    await getattr(books().admins, act)(name)
    return done(f"admin.{act}", "/admins")


@blueprint.post("/sessions/end")
async def end() -> Response:
    """End somebody's session."""
    session = (await fields()).text("session", 64)
    await office().sessions.revoke(session, officer().actor)
    return done("session.end", "/admins")


async def _page(values: dict[str, Any] | None = None, error: Refused | None = None) -> Response:
    found, missing = await together(
        admins=(POSTGRES, books().admins.listing),
        sessions=(POSTGRES, partial(office().sessions.listing)),
    )
    return await page(
        "admins.html",
        400 if error else 503 if missing else 200,
        missing=missing,
        admins=found["admins"] or [],
        sessions=[{**row, "ends_at": _end(row)} for row in found["sessions"] or []],
        own=g.session.id,
        me=officer(),
        roles=ROLES,
        values=values or {"role": "viewer"},
        error=error,
    )


def _end(row: dict[str, Any]) -> datetime:
    """Return when a session ends if nobody comes back to it."""
    idle = timedelta(seconds=office().settings.admin_session_timeout)
    return cast("datetime", min(row["expires_at"], row["seen_at"] + idle))


async def _once(row: dict[str, Any], title: str) -> Response:
    return await page(
        "secret.html",
        title=title,
        secret=row["token"],
        what="token",
        whose=f"Token of admin {row['name']}.",
        back="/admins",
        section="/admins",
        until=None,
    )
