"""What every page has around it: the template's surroundings, and the word after a change."""

from __future__ import annotations

import hashlib
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from quart import Response, g, redirect, render_template, request

from trio_gateway import __version__
from trio_gateway.core.officers import Role
from trio_gateway.web.admin.cookies import put
from trio_gateway.web.admin.guard import officer
from trio_gateway.web.admin.office import office
from trio_gateway.web.replies import BUSY_RETRY

if TYPE_CHECKING:
    from trio_gateway.pipeline.books import Books
    from trio_gateway.services.sessions import Session

STATIC = Path(__file__).parent / "static"
HTML = "text/html; charset=utf-8"
THEMES = ("auto", "light", "dark")
THEME = "tg-theme"  # cookie
NOTE = "tg-note"  # cookie: what was just done
NOTE_LIFE = 60  # seconds
NOTES = {
    "nothing": "Nothing was changed: the form was as it had been opened.",
    "tenant.create": "The tenant is there. Now it needs a key.",
    "tenant.update": "The tenant is changed. Limits hold from the next call on.",
    "tenant.extend": "The budget is increased.",
    "tenant.end_extension": "The increase has ended.",
    "tenant.disable": "The tenant is disabled; its calls are being cut.",
    "tenant.enable": "The tenant is enabled.",
    "tenant.delete": "The tenant is deleted.",
    "key.update": "The key is changed. Limits hold from the next call on.",
    "key.extend": "The budget is increased.",
    "key.end_extension": "The increase has ended.",
    "key.disable": "The key is disabled; its calls are being cut.",
    "key.enable": "The key is enabled.",
    "key.revoke": "The key is revoked for good; its calls are being cut.",
    "model.change": "The model is changed.",
    "batch.cancel": "The batch is being cancelled.",
    "file.delete": "The file is deleted.",
    "call.cut": "The call is being cut.",
    "admin.create": "The admin is there.",
    "admin.assign": "The role is changed; the sessions of this admin have ended.",
    "admin.disable": "The admin is disabled; the sessions have ended.",
    "admin.enable": "The admin is enabled.",
    "admin.delete": "The admin is deleted.",
    "session.end": "The session has ended.",
    "webhook.create": "The webhook is there.",
    "webhook.update": "The webhook is changed.",
    "webhook.disable": "The webhook is disabled.",
    "webhook.enable": "The webhook is enabled.",
    "webhook.delete": "The webhook is deleted.",
    "webhook.test": "A test message is on its way.",
}
# Places in the navigation: address, name, and the icon's name. A heading is a name alone.
NAVIGATION = (
    ("Traffic", (("/", "Overview"), ("/usage", "Usage"), ("/calls", "Live calls"))),
    ("Access", (("/tenants", "Tenants and keys"), ("/keys", "Find a key"), ("/models", "Models"))),
    ("Batches", (("/batches", "Batches"), ("/files", "Files"))),
    (
        "Records",
        (
            ("/ledger", "Ledger"),
            ("/audit", "Audit"),
            ("/notices", "Notices"),
            ("/webhooks", "Webhooks"),
        ),
    ),
    (
        "Installation",
        (("/backends", "Backends"), ("/health", "Health"), ("/admins", "Admins"), ("/docs", "API")),
    ),
)
ADMINS_ALONE = frozenset({"/admins"})


async def page(template: str, status: int = 200, **values: Any) -> Response:
    """Render a page with its surroundings."""
    values["note"] = NOTES.get(request.cookies.get(NOTE, ""))
    text = await render_template(template, **surroundings(), **values)
    response = Response(text, status, content_type=HTML)
    if status == 503:
        response.headers["retry-after"] = str(BUSY_RETRY)
    if NOTE in request.cookies:
        response.delete_cookie(NOTE, path="/")
    return response


def surroundings() -> dict[str, Any]:
    """Return what the base template needs; there may be no session."""
    session = cast("Session | None", g.get("session"))
    theme = request.cookies.get(THEME, "auto")
    return {
        "asset": asset,
        "csrf": session.csrf if session else "",
        "here": request.path,
        "may_change": session is not None and session.officer.role is Role.ADMIN,
        "navigation": NAVIGATION,
        "admins_alone": ADMINS_ALONE,
        "officer": session.officer if session else None,
        "theme": theme if theme in THEMES else "auto",
        "version": __version__,
    }


def done(act: str, where: str) -> Response:
    """Lead to a page that says what was done; `act` is one of NOTES."""
    response = cast("Response", redirect(where, 303))
    put(response, NOTE, act, NOTE_LIFE)
    return response


def books() -> Books:
    """Return the books in which what this officer changes is recorded."""
    return office().books(officer())


@cache
def asset(name: str) -> str:
    """Return the address of a static file, which changes with its contents."""
    digest = hashlib.sha256((STATIC / name).read_bytes()).hexdigest()
    return f"/static/{name}?v={digest[:12]}"
