"""Who uses the admin listener, and what an admin token looks like.

A token is `tga-` and 43 URL-safe characters: 256 random bits. It is found by its `lookup`, the
first digits of its SHA-256, which say nothing of the rest, and proven by argon2id.
"""

from __future__ import annotations

import hashlib
import secrets
from dataclasses import dataclass
from enum import StrEnum

TOKEN_PREFIX = "tga-"  # noqa: S105 - what every token begins with
LOOKUP_LENGTH = 16  # hex digits
MOST_TOKEN = 512  # characters; an operator's own may be of any shape


class Role(StrEnum):
    """What somebody may do: change everything, see everything, or read the metrics."""

    ADMIN = "admin"
    VIEWER = "viewer"
    METRICS = "metrics"


@dataclass(frozen=True, slots=True)
class Officer:
    """Somebody who was proven on the admin listener.

    `credential` is what the proof rests on: `admin:<lookup>` or `oidc:<subject>`.
    """

    name: str
    role: Role
    credential: str

    @property
    def actor(self) -> str:
        """As whom they are on record."""
        return f"admin:{self.name}"


def new_token() -> str:
    """Return a fresh random token."""
    return TOKEN_PREFIX + secrets.token_urlsafe(32)


def sha256_hex(text: str) -> str:
    """Return the SHA-256 of a token, or of a session's secret."""
    return hashlib.sha256(text.encode()).hexdigest()


def lookup_of(token: str) -> str:
    """Return what a token is found by."""
    return sha256_hex(token)[:LOOKUP_LENGTH]
