"""The dashboard's cookies: out of scripts' reach, and sent by no other site's pages."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal
from urllib.parse import urlsplit

from quart import request

from trio_gateway.web.admin.office import office

if TYPE_CHECKING:
    from quart import Response

HOST = "__Host-"  # browsers take such names over TLS only, for this very host and path /
PLAIN_NAME = "tg-session"
SECURE_NAME = HOST + PLAIN_NAME
MOST_SECRET = 128  # characters


def over_https() -> bool:
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


def bound(name: str) -> str:
    """Return the name of a cookie that no other host may set, where TLS is spoken."""
    return f"{HOST}{name}" if over_https() else name


def put(
    response: Response,
    name: str,
    value: str,
    max_age: int | None = None,
    samesite: Literal["Strict", "Lax"] = "Strict",
) -> None:
    """Hand the browser a cookie for all of our paths, out of scripts' reach.

    `max_age` is in seconds; 0 makes the browser forget it, None lets it go when the browser does.
    """
    response.set_cookie(
        name,
        value,
        max_age=max_age,
        path="/",
        secure=over_https(),
        httponly=True,
        samesite=samesite,
    )


def set_session(response: Response, secret: str) -> None:
    """Hand the browser a session's secret."""
    put(response, bound(PLAIN_NAME), secret)


def clear_session(response: Response) -> None:
    """Make the browser forget it."""
    put(response, bound(PLAIN_NAME), "", 0)


def session_secret() -> str | None:
    """Return the secret that the browser presents, None without one.

    Over TLS the plain name counts for nothing: a neighboring host could have set that one.
    """
    found = request.cookies.get(bound(PLAIN_NAME))
    return found if found and len(found) <= MOST_SECRET else None
