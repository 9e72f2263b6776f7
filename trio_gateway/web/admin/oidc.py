"""Signing in to the dashboard by way of an OpenID provider.

The browser comes back from the provider's site, so the session's cookie, which is sent for pages
of ours alone, would be missing from a redirect onward: the callback answers with a page that
leads to the dashboard. Nothing that the provider or the address says is shown.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Literal, NoReturn, cast

import structlog
from quart import Blueprint, Response, redirect, render_template, request

from trio_gateway.core.errors import InvalidCall, NotFound
from trio_gateway.core.openid import (
    AttemptRefused,
    CodeRefused,
    ProviderUnavailable,
    TokenRefused,
    credential_of,
    officer_of,
)
from trio_gateway.services.account_rows import write_event
from trio_gateway.services.attempts import LIFE
from trio_gateway.web.admin.cookies import bound, put, set_session
from trio_gateway.web.admin.dashboard.desk import POLICY
from trio_gateway.web.admin.dashboard.shell import HTML, surroundings
from trio_gateway.web.admin.guard import client
from trio_gateway.web.admin.office import office

if TYPE_CHECKING:
    from trio_gateway.core.officers import Officer
    from trio_gateway.web.admin.oidc_office import OidcOffice

log = structlog.get_logger()

COOKIE = "tg-oidc"
SITE: Literal["Lax"] = "Lax"  # the provider's redirect has to carry it
ACCOUNT = "oidc"  # failures are counted by address
MOST = 4096  # characters of a parameter
RETRY_AFTER = 60  # seconds
AWAY = {"server_error", "temporarily_unavailable"}
NOT_OURS = (
    "This login did not begin in this browser, took longer than ten minutes,"
    " or was finished before. Begin again."
)
DECLINED = "The provider says that the login was declined, there or by its rules."
PROVIDER_AWAY = "The provider says that it cannot answer at present. Try again later."
CODE = "The provider does not honor this login. Begin again."
NO_ROLE = (
    "You are known to the provider, but nothing it says about you gives you a role here. Ask"
    " whoever runs this gateway: the settings OIDC_CLAIM, OIDC_ADMINS and OIDC_VIEWERS decide."
)

blueprint = Blueprint("oidc", __name__, template_folder="templates")


class LoginFailed(Exception):
    """Ends a login; `sentence` is shown, `counts` is whether it counts against the address."""

    def __init__(self, status: int, sentence: str, reason: str, *, counts: bool = True) -> None:
        """`reason` is one of a few fixed words, for the log."""
        self.status = status
        self.sentence = sentence
        self.reason = reason
        self.counts = counts
        super().__init__(reason)


@blueprint.get("/login/oidc")
async def begin() -> Response:
    """Lead the browser to the provider, with a cookie that only it has."""
    here = _configured()
    cookie, pending = here.attempts.begin()
    try:
        url = await here.provider.login_url(pending)
    except ProviderUnavailable as error:
        return await _unavailable(error)
    response = cast("Response", redirect(url, 303))
    put(response, bound(COOKIE), cookie, LIFE, SITE)
    return response


@blueprint.get("/login/oidc/callback")
async def finish() -> Response:
    """Take the browser back, as whoever the provider says it is."""
    here, address = _configured(), client()
    wait = await office().logins.wait(ACCOUNT, address)
    if wait:
        log.warning("login_throttled", client=address)
        sentence = "There were too many failed logins from your address. Try again later."
        return await _page(429, sentence, retry_after=math.ceil(wait))
    try:
        officer = await _prove(here)
    except LoginFailed as failure:
        log.warning("oidc_login_failed", client=address, reason=failure.reason)
        if failure.counts:
            await office().logins.failed(ACCOUNT, address)
        response = await _page(failure.status, failure.sentence)
    except ProviderUnavailable as error:
        response = await _unavailable(error)
    else:
        await office().logins.succeeded(ACCOUNT, address)
        response = await _welcome(officer, address)
    put(response, bound(COOKIE), "", 0, SITE)
    return response


@blueprint.after_request
async def secure(response: Response) -> Response:
    """Let the pages load what the dashboard's do."""
    response.headers["content-security-policy"] = POLICY
    return response


async def _prove(here: OidcOffice) -> Officer:
    """Return who has logged in. Raises LoginFailed, ProviderUnavailable."""
    state, code, error, issuer = map(_argument, ("state", "code", "error", "iss"))
    try:
        pending = await here.attempts.take(request.cookies.get(bound(COOKIE), ""), state or "")
    except AttemptRefused:
        # Nothing to guess here, and any page can send its visitor's browser this way.
        raise LoginFailed(403, NOT_OURS, "not_ours", counts=False) from None
    if error is not None:
        _explain(error)
    if not code:
        raise LoginFailed(400, CODE, "no_code")
    try:
        claims = await here.provider.claims(code, pending, issuer)
        credential = credential_of(claims)
        role = here.roles.of(claims)
        if role is not None:
            return officer_of(claims, role)
    except CodeRefused:
        raise LoginFailed(403, CODE, "code") from None
    except TokenRefused as refused:
        raise LoginFailed(403, f"The ID token {refused}.", "token") from None
    await office().sessions.end_all(credential)
    raise LoginFailed(403, NO_ROLE, "no_role")


async def _welcome(officer: Officer, address: str | None) -> Response:
    await office().sessions.end_all(officer.credential, sparing=officer.role)
    secret = await office().sessions.open(officer, address)
    act = (officer.actor, "admin.login", officer.name)
    after = {"client": address, "role": str(officer.role), "credential": officer.credential}
    await office().postgres.transact(write_event, act, None, after)
    log.info("login", name=officer.name, client=address)
    response = await _page(200, None)
    response.headers["refresh"] = "0;url=/"
    set_session(response, secret)
    return response


def _configured() -> OidcOffice:
    here = office().oidc
    if here is None:
        raise NotFound("There is nothing here.")
    return here


def _argument(name: str) -> str | None:
    values = request.args.getlist(name)
    if len(values) > 1 or any(len(value) > MOST for value in values):
        raise InvalidCall(f"The parameter {name} may appear once only, and not too long.")
    return values[0] if values else None


def _explain(error: str) -> NoReturn:
    if error in AWAY:
        raise LoginFailed(503, PROVIDER_AWAY, "provider_away", counts=False)
    raise LoginFailed(403, DECLINED, "declined")


async def _unavailable(error: ProviderUnavailable) -> Response:
    log.warning("oidc_provider_unavailable", reason=str(error))
    return await _page(503, f"The provider {error}.", retry_after=RETRY_AFTER)


async def _page(status: int, sentence: str | None, retry_after: int | None = None) -> Response:
    text = await render_template("oidc.html", **surroundings(), sentence=sentence)
    response = Response(text, status, content_type=HTML)
    if retry_after is not None:
        response.headers["retry-after"] = str(retry_after)
    return response
