"""The doctor's look at settings that are understood, and yet may not be meant."""

from __future__ import annotations

import os
from ipaddress import ip_network
from pathlib import Path
from typing import TYPE_CHECKING

from trio_gateway.cli.finding import Finding, ok, warn
from trio_gateway.settings import variable

if TYPE_CHECKING:
    from collections.abc import Mapping

    from trio_gateway.settings import Settings

SECRET = (
    "database_url",
    "database_listen_url",
    "redis_url",
    "admin_token",
    "metrics_token",
    "oidc_client_secret",
)


def check_settings(given: Settings, environ: Mapping[str, str] = os.environ) -> list[Finding]:
    """Judge what trusts everybody, and files of secrets that others can read."""
    return [ok("settings", "understood"), *_everybody(given), *_files(environ)]


def _everybody(given: Settings) -> list[Finding]:
    found = []
    parts = filter(None, map(str.strip, given.trusted_proxies.split(",")))
    if any(ip_network(part, strict=False).prefixlen == 0 for part in parts):
        advice = "Name your proxies' addresses alone: a caller can put any address into the log."
        detail = "TRIO_GATEWAY_TRUSTED_PROXIES believes everybody"
        found.append(warn("trusted proxies", detail, advice))
    if "*" in map(str.strip, given.cors_origins.split(",")):
        advice = "Name the pages that may call: a key in a browser is a key that any page can use."
        found.append(warn("cors", "TRIO_GATEWAY_CORS_ORIGINS lets every page call", advice))
    return found


def _files(environ: Mapping[str, str]) -> list[Finding]:
    names = [f"{variable(field)}_FILE" for field in SECRET]
    given = [name for name in names if name in environ]
    bad = [name for name in given if _is_open(Path(environ[name]).absolute())]
    if bad:
        advice = "Take the files' permissions for others away (chmod o-rwx)."
        return [warn("secret files", f"other users can read those of {', '.join(bad)}", advice)]
    return [ok("secret files", "closed to other users")] if given else []


def _is_open(path: Path) -> bool:
    """Whether others may read or change the file, and may go where it is."""
    path = path.resolve()
    reachable = all(folder.stat().st_mode & 0o001 for folder in path.parents)
    return reachable and bool(path.stat().st_mode & 0o006)
