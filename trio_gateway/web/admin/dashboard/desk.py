"""The dashboard's door: who sees its pages, and which requests may change something.

Every page wants a session but those in OPEN. Every change wants the session's token in its form,
a page of ours as its origin, and the role `admin`, but for what concerns the session alone.
"""

from __future__ import annotations

import hmac
from typing import TYPE_CHECKING, cast
from urllib.parse import quote, urlsplit

from quart import Blueprint, g, redirect, request

from trio_gateway.clients.postgres import NotMigrated, within
from trio_gateway.core.errors import CallerError, StoreUnavailable
from trio_gateway.core.officers import Role
from trio_gateway.web.admin.cookies import session_secret
from trio_gateway.web.admin.dashboard.words import FILTERS
from trio_gateway.web.admin.guard import READING, require
from trio_gateway.web.admin.office import office

if TYPE_CHECKING:
    from quart import Response

    from trio_gateway.services.sessions import Session

NAME = "dashboard"
OPEN = frozenset(f"{NAME}.{name}" for name in ("static", "login.ask", "login.enter"))
OWN = frozenset(f"{NAME}.{name}" for name in ("login.leave", "login.dress"))
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:;"
    " connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
HEALTH = f"{NAME}.machines.health"
PATIENCE = 3.0  # seconds for the look-up of a session
YEAR = 31_536_000  # seconds
RENEWAL = "x-renewal"  # the header of the script that renews a part of a page

blueprint = Blueprint(
    NAME,
    __name__,
    template_folder="templates",
    static_folder="static",
    static_url_path="/static",
)


class FormRefused(CallerError):
    """Raised for a change that no form of ours, shown in this session, asked for."""

    status = 403
    default_code = "form_refused"
    default_message = (
        "This form is not of your present session. Go back, load the page again, and repeat it."
    )


class SessionsAway(StoreUnavailable):
    """Raised where PostgreSQL, which keeps the sessions, gives no answer."""


class SignedOut(CallerError):
    """Raised where a session is wanted, and there is none any more."""

    status = 403
    default_code = "signed_out"
    default_message = "Your session is over. Sign in again."


@blueprint.before_request
async def admit() -> Response | None:
    """Let through, lead to the login, or refuse; note the session and the officer in `g`."""
    if request.endpoint in OPEN:
        return None
    secret = session_secret()
    renewal = RENEWAL in request.headers or request.path == "/events"
    session = await known(secret, seen=not renewal) if secret else None
    if session is None:
        if request.method != "GET" or renewal:
            raise SignedOut
        return cast("Response", redirect(login_for(request.full_path), 303))
    g.session, g.officer = session, session.officer
    if request.method not in READING:
        office().proven.clear()
        await check_form(session.csrf)
        require(Role.VIEWER if request.endpoint in OWN else Role.ADMIN)
    return None


@blueprint.after_request
async def secure(response: Response) -> Response:
    """Let pages load what is ours and nothing else; static files may be kept."""
    response.headers["content-security-policy"] = POLICY
    # With `no-referrer` browsers would send `Origin: null` with our own forms.
    response.headers["referrer-policy"] = "same-origin"
    if request.endpoint == f"{NAME}.static" and response.status_code in {200, 304}:
        response.headers["cache-control"] = f"public, max-age={YEAR if 'v' in request.args else 0}"
    return response


@blueprint.record_once
def add_filters(state: object) -> None:
    """Let the templates write numbers, sizes and times."""
    state.app.jinja_env.filters.update(FILTERS)  # type: ignore[attr-defined]


async def known(secret: str, *, seen: bool) -> Session | None:
    """Return the session behind a cookie, None where it is over; raises SessionsAway.

    The health page is shown while PostgreSQL is away, to whoever was proven shortly before.
    """
    try:
        with within(PATIENCE):
            session = await office().sessions.find(secret, seen=seen)
    except NotMigrated:
        raise
    except StoreUnavailable:
        if request.method not in READING:
            office().proven.forget(secret)
        health = request.endpoint == HEALTH and request.method == "GET"
        if health and (session := office().proven.find(secret)) is not None:
            return session
        raise SessionsAway from None
    if session is None:
        office().proven.forget(secret)
    else:
        office().proven.note(session)
    return session


async def check_form(token: str) -> None:
    """Raise FormRefused unless the form has this token and comes from a page of ours."""
    form = await request.form
    given = form.get("csrf", "")
    if not (token and hmac.compare_digest(given.encode(), token.encode()) and _from_here()):
        raise FormRefused


def login_for(wanted: str) -> str:
    """Return the login's address, which leads on to the page that was wanted."""
    path = wanted.rstrip("?")
    return "/login" if path == "/" else f"/login?next={quote(path)}"


def _from_here() -> bool:
    """Whether the browser does not say that another site's page sent this."""
    site = request.headers.get("sec-fetch-site")
    origin = request.headers.get("origin")
    if site not in {None, "same-origin", "none"}:
        return False
    # A page that sends no referrer has no origin either, but may still be known to be ours.
    if origin is None or (origin == "null" and site == "same-origin"):
        return True
    public = urlsplit(office().settings.admin_public_url)
    ours = {request.headers.get("host", "").lower(), public.netloc.lower()} - {""}
    parts = urlsplit(origin)
    return parts.scheme in {"http", "https"} and parts.netloc.lower() in ours
