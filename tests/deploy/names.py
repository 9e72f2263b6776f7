"""The settings that a file of deploy/ names, checked against the gateway's own."""

from __future__ import annotations

import re

from trio_gateway import settings

NAME = re.compile(
    r"\b(?:TRIO_GATEWAY_[A-Z][A-Z_]*|DATABASE_URL|REDIS_URL|OLLAMA_BASE_URL)(?:_FILE)?\b"
)


def settings_of(text: str) -> set[str]:
    """Return the settings named, without `_FILE`; fails where the gateway has no such one."""
    known = set(map(settings.variable, settings.Settings.model_fields))
    found = {name.removesuffix("_FILE") for name in NAME.findall(text)}
    assert found <= known, found - known
    return found
