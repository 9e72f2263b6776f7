"""The dashboard's session cookie: out of scripts' reach, and sent by no other site's pages."""

from __future__ import annotations

from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from trio_gateway.web.admin.office import office

if TYPE_CHECKING:
    from quart import Response
    from quart.wrappers import Request

SECURE_NAME = "__Host-tg-session"  # browsers take it over TLS only, for this very host and path /
PLAIN_NAME = "tg-session"
MOST_SECRET = 128  # characters


def over_https(request: Request) -> bool:
    """Whether the browser speaks TLS, to us or to the proxy that serves the public URL."""
    if request.scheme == "https":
        return True
    public = urlsplit(office().settings.admin_public_url)
    try:
        asked = urlsplit(f"//{request.headers.get('host', '')}")
        port = asked.port
    except ValueError:  # of a Host that is refused
        return False
    return (
        public.scheme == "https"
        and asked.hostname == public.hostname
        and port in {None, public.port or 443}  # proxies leave it out at will
    )


def set_session(response: Response, secret: str, *, secure: bool) -> None:
    """Hand the browser a session's secret; it goes when the browser does."""
    _set(response, secret, None, secure=secure)


def clear_session(response: Response, *, secure: bool) -> None:
    """Make the browser forget it."""
    _set(response, "", 0, secure=secure)


def session_secret(request: Request) -> str | None:
    """Return the secret that the browser presents, None without one.

    Over TLS the plain name counts for nothing: a neighboring host could have set that one.
    """
    found = request.cookies.get(SECURE_NAME if over_https(request) else PLAIN_NAME)
    return found if found and len(found) <= MOST_SECRET else None


def _set(response: Response, value: str, max_age: int | None, *, secure: bool) -> None:
    response.set_cookie(
        SECURE_NAME if secure else PLAIN_NAME,
        value,
        max_age=max_age,
        path="/",
        secure=secure,
        httponly=True,
        samesite="Strict",
    )
