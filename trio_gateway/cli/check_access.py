"""The doctor's look at the way to the admin listener: its tokens, its address, its provider."""

from __future__ import annotations

from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from trio_gateway.cli.check_http import get
from trio_gateway.cli.finding import Finding, ok, warn

if TYPE_CHECKING:
    from trio_gateway.settings import Settings

SHORTEST = 20  # characters
DISCOVERY = "/.well-known/openid-configuration"


def check_access(given: Settings) -> list[Finding]:
    """Judge what the settings say; no token is shown."""
    return [*_tokens(given), *_remote(given)]


async def check_provider(given: Settings) -> list[Finding]:
    """Ask the OpenID provider, where there is one, for what the dashboard will ask it."""
    if not given.oidc_issuer:
        return []
    place = urlsplit(given.oidc_issuer).netloc
    answer = await get(given.oidc_issuer + DISCOVERY)
    if answer is None or answer.status != 200:
        detail = f"{place} does not answer {DISCOVERY}"
        advice = (
            "Correct TRIO_GATEWAY_OIDC_ISSUER, or the way there; admins' tokens work meanwhile."
        )
        return [warn("oidc", detail, advice)]
    if str(answer.fields.get("issuer", "")).rstrip("/") != given.oidc_issuer:
        advice = "Set TRIO_GATEWAY_OIDC_ISSUER to the very issuer that the provider names."
        return [warn("oidc", f"{place} calls itself by another name", advice)]
    return [ok("oidc", f"{place} answers")]


def _tokens(given: Settings) -> list[Finding]:
    tokens = {
        "TRIO_GATEWAY_ADMIN_TOKEN": given.admin_token,
        "TRIO_GATEWAY_METRICS_TOKEN": given.metrics_token,
    }
    weak = [name for name, token in tokens.items() if token and len(token) < SHORTEST]
    if weak:
        detail = f"shorter than {SHORTEST} characters: {' and '.join(weak)}"
        return [warn("tokens", detail, "Make them of `openssl rand -hex 32`.")]
    return [ok("tokens", "those in the settings are long")] if any(tokens.values()) else []


def _remote(given: Settings) -> list[Finding]:
    if not given.admin_allow_remote or given.admin_public_url.startswith("https://"):
        return []
    detail = "may be reached from elsewhere without TLS: TRIO_GATEWAY_ADMIN_ALLOW_REMOTE is set"
    advice = "Put TLS in front, and set TRIO_GATEWAY_ADMIN_PUBLIC_URL to its https:// address."
    return [warn("admin address", detail, advice)]
