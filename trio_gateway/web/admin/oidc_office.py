"""What the login by an OpenID provider needs, wired where such a login is configured."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from trio_gateway.clients.oidc import Provider
    from trio_gateway.core.openid import Roles
    from trio_gateway.services.attempts import Attempts


@dataclass(frozen=True, slots=True)
class OidcOffice:
    """The provider, the logins under way, and what its claims are worth."""

    provider: Provider
    attempts: Attempts
    roles: Roles
