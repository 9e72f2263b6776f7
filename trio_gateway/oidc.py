"""Wires the login by an OpenID provider, where one is configured."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from trio_gateway.clients.oidc import Provider
from trio_gateway.core.openid import Client, Roles, listed
from trio_gateway.gateway import CannotStart
from trio_gateway.services.attempts import Attempts
from trio_gateway.web.admin.oidc_office import OidcOffice

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from trio_gateway.clients.oidc import TokenCheck
    from trio_gateway.clients.redis import Redis
    from trio_gateway.settings import Settings

CALLBACK = "/login/oidc/callback"
MISSING = (
    "TRIO_GATEWAY_OIDC_ISSUER is set, but the package joserfc is not installed;"
    " install the extra: trio-gateway[oidc]"
)


@asynccontextmanager
async def open_oidc(
    settings: Settings, redis: Redis, installation_secret: bytes
) -> AsyncIterator[OidcOffice | None]:
    """Hold the provider's connections; nothing without an issuer. Raises CannotStart."""
    if not settings.oidc_issuer:
        yield None
        return
    client = Client(
        issuer=settings.oidc_issuer,
        client_id=settings.oidc_client_id,
        client_secret=settings.oidc_client_secret,
        redirect_uri=settings.admin_public_url + CALLBACK,
        claim=settings.oidc_claim,
    )
    roles = Roles(settings.oidc_claim, listed(settings.oidc_admins), listed(settings.oidc_viewers))
    provider = Provider(client, _token_check())
    try:
        yield OidcOffice(provider, Attempts(redis, installation_secret), roles)
    finally:
        await provider.aclose()


def _token_check() -> TokenCheck:
    try:
        from trio_gateway.clients.id_tokens import IdTokens  # noqa: PLC0415 - of an optional extra
    except ImportError:
        raise CannotStart(MISSING) from None
    return IdTokens()
