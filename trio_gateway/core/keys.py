"""The shape of a key: `sk-tg-<public id>-<secret><check>`.

The check is a truncated HMAC under a secret of the installation over all that stands
before it, so that a made-up key is refused from its text alone: no store, no argon2. It
proves no right by itself; the secret behind it is still verified.
"""

from __future__ import annotations

import hmac
import re
import secrets
from dataclasses import dataclass, field

PREFIX = "sk-tg-"
ALPHABET = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
PUBLIC_LENGTH = 16
SECRET_LENGTH = 32  # 190 bits
CHECK_LENGTH = 8  # 47 bits
KEY_LENGTH = len(PREFIX) + PUBLIC_LENGTH + 1 + SECRET_LENGTH + CHECK_LENGTH

_SHAPE = re.compile(
    rf"{PREFIX}([0-9A-Za-z]{{{PUBLIC_LENGTH}}})-"
    rf"([0-9A-Za-z]{{{SECRET_LENGTH}}})([0-9A-Za-z]{{{CHECK_LENGTH}}})"
)


@dataclass(frozen=True, slots=True)
class ParsedKey:
    """The two halves of a key whose check is right."""

    public_id: str
    secret: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class NewKey:
    """A key just made; `text` is shown once and kept nowhere."""

    public_id: str
    secret: str = field(repr=False)
    text: str = field(repr=False)


def new_key(installation_secret: bytes) -> NewKey:
    """Return a fresh random key."""
    public_id, secret = _draw(PUBLIC_LENGTH), _draw(SECRET_LENGTH)
    body = f"{PREFIX}{public_id}-{secret}"
    return NewKey(public_id, secret, body + _check(body, installation_secret))


def parse_key(text: str, installation_secret: bytes) -> ParsedKey | None:
    """Return a key's halves, or None for anything this installation did not make."""
    if len(text) != KEY_LENGTH:
        return None
    shape = _SHAPE.fullmatch(text)
    if shape is None:
        return None
    public_id, secret, check = shape.groups()
    if not hmac.compare_digest(check, _check(text[:-CHECK_LENGTH], installation_secret)):
        return None
    return ParsedKey(public_id, secret)


def digest(process_secret: bytes, text: str) -> bytes:
    """Return the 32 bytes under which a verified key is remembered in memory.

    `text` may be any string at all; the secret lives as long as the process.
    """
    return hmac.digest(process_secret, text.encode("utf-8", "surrogatepass"), "sha256")


def last4(text: str) -> str:
    """Return what a list may show of a key: the end of its check, no part of its secret."""
    return text[-4:]


def _draw(length: int) -> str:
    return "".join(secrets.choice(ALPHABET) for _ in range(length))


def _check(body: str, installation_secret: bytes) -> str:
    number = int.from_bytes(hmac.digest(installation_secret, body.encode(), "sha256"))
    letters = []
    for _ in range(CHECK_LENGTH):
        number, letter = divmod(number, len(ALPHABET))
        letters.append(ALPHABET[letter])
    return "".join(letters)
