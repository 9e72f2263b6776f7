"""Signatures as Standard Webhooks 1.0 defines them, for any of its verifiers."""

from __future__ import annotations

import base64
import hashlib
import hmac
import secrets

PREFIX = "whsec_"
_BYTES = 32


def new_secret() -> str:
    """Return a secret as receivers are given it."""
    return PREFIX + base64.b64encode(secrets.token_bytes(_BYTES)).decode()


def signed(secret: str, message_id: str, timestamp: int, body: bytes) -> dict[str, str]:
    """Return the headers that prove a message; `timestamp` is in seconds since the epoch.

    Raises ValueError for a secret that is not one.
    """
    key = base64.b64decode(secret.removeprefix(PREFIX), validate=True)
    text = f"{message_id}.{timestamp}.".encode() + body
    digest = base64.b64encode(hmac.new(key, text, hashlib.sha256).digest()).decode()
    return {
        "webhook-id": message_id,
        "webhook-timestamp": str(timestamp),
        "webhook-signature": f"v1,{digest}",
    }
