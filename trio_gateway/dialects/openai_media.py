"""Pictures and sounds on their way in: data URLs to the plain base64 that upstream wants."""

from __future__ import annotations

import binascii
import re
from typing import Any

from trio_gateway.dialects import fields

_DATA_URL = re.compile(r"data:(?:image/(?:jpeg|jpg|png|webp|gif|bmp))?;base64,", re.IGNORECASE)
_SPACE = str.maketrans("", "", " \t\r\n")


def image(raw: Any, at: str) -> str:
    """Read an `image_url` part, or raise InvalidCall; nothing is ever fetched for a caller."""
    url, param = raw, at
    if isinstance(raw, dict):
        url, param = raw.get("url"), fields.path("url", at)
    if not isinstance(url, str):
        raise fields.refusal(param, "must be a data URL")
    head = _DATA_URL.match(url)
    if head is None:
        raise fields.refusal(param, "must be a base64 data URL of an image; nothing is fetched")
    return _base64(url[head.end() :], param)


def audio(raw: Any, at: str) -> str:
    """Read an `input_audio` part, or raise InvalidCall; upstream knows the format by itself."""
    encoded = raw.get("data") if isinstance(raw, dict) else None
    param = fields.path("data", at)
    if not isinstance(encoded, str):
        raise fields.refusal(param, "must be a string of base64")
    return _base64(encoded, param)


def _base64(encoded: str, param: str) -> str:
    """Return strict base64, with its padding and without line breaks, or raise InvalidCall."""
    plain = encoded.translate(_SPACE)
    plain += "=" * (-len(plain) % 4)
    try:
        decoded = binascii.a2b_base64(plain, strict_mode=True)
    except ValueError:
        decoded = b""
    if not decoded:
        raise fields.refusal(param, "must hold valid base64")
    return plain
