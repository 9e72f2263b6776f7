"""Who may do what on the admin listener.

/healthz        anybody
/metrics        a token of any role
/admin/v1/...   a token: `viewer` to read, `admin` to change. A cookie counts for nothing here
the rest        the dashboard's, which has sessions; see `dashboard`
"""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from quart import g, request

from trio_gateway.core.errors import CallerError, InvalidCall, Unauthenticated
from trio_gateway.core.officers import Officer, Role
from trio_gateway.web.admin.hosts import is_ours
from trio_gateway.web.admin.office import office
from trio_gateway.web.credentials import client_address, presented_key

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

READING = frozenset({"GET", "HEAD", "OPTIONS"})
API = "/admin/v1/"
METRICS = "/metrics"


class TokenRefused(Unauthenticated):
    """Raised for every reason an admin token is not honored; the one answer hides which."""

    default_code = "invalid_admin_token"
    default_message = "Incorrect admin token provided."


class RoleTooSmall(CallerError):
    """Raised where somebody who was proven may not do this."""

    status = 403
    default_code = "role_not_allowed"
    default_message = "Your role does not allow this."


class HostRefused(CallerError):
    """Raised for a Host that is not this listener's."""

    status = 421
    default_code = "host_not_allowed"
    default_message = "This host name is not served here; see TRIO_GATEWAY_ADMIN_PUBLIC_URL."


async def guard() -> None:
    """Refuse, or note in `g.officer` who asks; raises a GatewayError."""
    host = _only(b"host")
    server = (request.scope.get("server") or [None])[0]
    if host is None or not is_ours(host, server, office().hosts):
        raise HostRefused
    path = request.path
    if path == METRICS:
        await _prove(office().admins.prove_for_scrape)
    elif path.startswith(API):
        await _prove(office().admins.prove)
        require(Role.VIEWER if request.method in READING else Role.ADMIN)


def for_machines(path: str) -> bool:
    """Whether a path is the API's or the scrape's; browsers ask for the others."""
    return path in {API.rstrip("/"), METRICS} or path.startswith(API)


def officer() -> Officer:
    """Return who asks."""
    return cast("Officer", g.officer)


def require(least: Role) -> Officer:
    """Return who asks, if their role is at least this one; raises RoleTooSmall."""
    found = officer()
    if least is Role.ADMIN and found.role is not Role.ADMIN:
        raise RoleTooSmall
    if found.role is Role.METRICS:
        raise RoleTooSmall
    return found


def client() -> str | None:
    """Return the address that the request came from, past trusted proxies."""
    return client_address(cast("dict[str, object]", request.scope), office().trusted)


async def _prove(by: Callable[[str], Awaitable[Officer | None]]) -> None:
    for name in (b"authorization", b"x-api-key"):
        _only(name)
    try:
        token = presented_key(request.scope["headers"])
    except Unauthenticated:
        token = None
    found = None if token is None else await by(token)
    if found is None:
        raise TokenRefused
    g.officer = found


def _only(name: bytes) -> str | None:
    """Return a header that may be there once only."""
    values = [value for key, value in request.scope["headers"] if key == name]
    if len(values) > 1:
        raise InvalidCall(f"The header {name.decode()} may appear once only.")
    return values[0].decode("latin-1") if values else None
