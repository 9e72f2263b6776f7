"""Signing in with a token, signing out, and the one thing that a browser remembers: its theme."""

from __future__ import annotations

import math
import re
import secrets
from typing import TYPE_CHECKING, cast

import structlog
from quart import Blueprint, Response, g, redirect, request

from trio_gateway.clients.postgres import within
from trio_gateway.core.officers import MOST_TOKEN, Role, lookup_of, sha256_hex
from trio_gateway.services.account_rows import write_event
from trio_gateway.web.admin.cookies import (
    bound,
    clear_session,
    put,
    session_secret,
    set_session,
)
from trio_gateway.web.admin.dashboard.desk import PATIENCE, check_form, known
from trio_gateway.web.admin.dashboard.shell import THEME, THEMES, page
from trio_gateway.web.admin.guard import client
from trio_gateway.web.admin.office import office

if TYPE_CHECKING:
    from trio_gateway.core.officers import Officer

log = structlog.get_logger()

FORM = "tg-login"  # the cookie that has the form's token
YEAR = 31_536_000  # seconds
WRONG = "This token is not honored here."
_LOCAL = re.compile(r"/(?:[A-Za-z0-9._~-][A-Za-z0-9._~/?&=%:-]{0,500})?")

blueprint = Blueprint("login", __name__)


@blueprint.get("/login")
async def ask() -> Response:
    """Show the form; its token is in a cookie as well, which no other site can read or set."""
    secret = session_secret()
    if secret and await known(secret, seen=False):
        return cast("Response", redirect(onward(), 303))
    return await _form(200, "")


@blueprint.post("/login")
async def enter() -> Response:
    """Begin a session, with a secret that did not exist before."""
    await check_form(request.cookies.get(bound(FORM), ""))
    token = (await request.form).get("token", "").strip()[: MOST_TOKEN + 1]
    account, address = lookup_of(token), client()
    with within(PATIENCE):
        wait = await office().logins.wait(account, address)
    if wait:
        log.warning("login_throttled", client=address)
        return await _form(429, "", wait=math.ceil(wait))
    officer = await office().admins.prove(token)
    if officer is None or officer.role is Role.METRICS:
        await office().logins.failed(account, address)
        log.warning("login_failed", client=address)
        return await _form(403, WRONG)
    await office().logins.succeeded(account, address)
    return await _begin(officer, address)


@blueprint.post("/logout")
async def leave() -> Response:
    """End the session here and in the database."""
    await office().sessions.end(g.session.id)
    response = cast("Response", redirect("/login", 303))
    clear_session(response)
    return response


@blueprint.post("/theme")
async def dress() -> Response:
    """Remember light, dark, or whatever the system has."""
    form = await request.form
    wanted = form.get("theme", "")
    response = cast("Response", redirect(_safe(form.get("back", "/")), 303))
    if wanted in THEMES:
        put(response, THEME, wanted, YEAR)
    return response


def onward() -> str:
    """Return the page that was wanted before the login; never one of another site."""
    return _safe(request.args.get("next", "/"))


async def _begin(officer: Officer, address: str | None) -> Response:
    earlier = session_secret()
    if earlier:
        await office().sessions.end(sha256_hex(earlier))
    secret = await office().sessions.open(officer, address)
    act = (officer.actor, "admin.login", officer.name)
    await office().postgres.transact(
        write_event, act, None, {"client": address, "role": str(officer.role)}
    )
    log.info("login", name=officer.name, client=address)
    response = cast("Response", redirect(onward(), 303))
    set_session(response, secret)
    put(response, bound(FORM), "", 0)
    return response


async def _form(status: int, error: str, wait: int = 0) -> Response:
    token = request.cookies.get(bound(FORM)) or secrets.token_urlsafe(32)
    response = await page(
        "login.html",
        status,
        form_token=token,
        error=error,
        wait=wait,
        oidc=bool(office().settings.oidc_issuer),
    )
    put(response, bound(FORM), token)
    if wait:
        response.headers["retry-after"] = str(wait)
    return response


def _safe(path: str) -> str:
    return path if _LOCAL.fullmatch(path) else "/"
