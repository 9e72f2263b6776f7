"""JSON as Ollama reads and writes it."""

from __future__ import annotations

import base64
import binascii
import json
import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import orjson

if TYPE_CHECKING:
    from collections.abc import Mapping

JSON = "application/json; charset=utf-8"
NDJSON = "application/x-ndjson"


class Refusal(Exception):
    """An error in Ollama's words; `body` is the whole answer."""

    def __init__(self, status: int, text: str, **more: str) -> None:
        """Keep the status and the body."""
        self.status = status
        self.body: dict[str, str] = {"error": text, **more}
        super().__init__(text)


def encode(value: Any) -> bytes:
    """Write JSON compactly, with the characters of HTML escaped as Go does."""
    raw = orjson.dumps(value)
    for sign in b"<>&":
        if sign in raw:
            raw = raw.replace(bytes((sign,)), b"\\u%04x" % sign)
    return raw


def now() -> str:
    """Return the time as Go prints it: RFC 3339 with nine digits."""
    seconds, nanoseconds = divmod(time.time_ns(), 1_000_000_000)
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%dT%H:%M:%S}.{nanoseconds:09d}Z"


def decode(body: bytes, struct: str, kinds: Mapping[str, str]) -> dict[str, Any]:
    """Read a request as Go's encoding/json would, or raise Refusal.

    Known names match in any case, unknown ones are kept but not looked at, null counts as
    absent, and what follows the first value is ignored. `kinds` gives the Go type of each
    known field; `struct` names the request in error texts.
    """
    if not body.strip():
        raise Refusal(400, "missing request body")
    value = _value(body)
    if not isinstance(value, dict):
        raise Refusal(
            400, f"json: cannot unmarshal {_word(value)} into Go value of type api.{struct}"
        )
    found: dict[str, Any] = {}
    for name, item in value.items():
        known = name if name in kinds else name.lower()
        if item is not None:
            found[known if known in kinds else name] = item
    for name, kind in kinds.items():
        if name in found and not _is(found[name], kind):
            raise Refusal(
                400,
                f"json: cannot unmarshal {_word(found[name])} into Go struct field "
                f"{struct}.{name} of type {kind}",
            )
    return found


def check_images(images: list[str]) -> None:
    """Raise Refusal unless every image is padded standard base64."""
    for image in images:
        try:
            base64.b64decode(image.replace("\n", "").replace("\r", ""), validate=True)
        except (binascii.Error, ValueError):
            raise Refusal(400, "illegal base64 data at input byte 0") from None


def _value(body: bytes) -> Any:
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError:
        pass
    text = body.decode("utf-8", "replace").lstrip()
    try:
        return json.JSONDecoder(parse_constant=_no_constant).raw_decode(text)[0]
    except (ValueError, RecursionError):
        raise Refusal(400, "invalid character looking for beginning of value") from None


def _no_constant(name: str) -> Any:
    raise ValueError(name)


def _word(value: Any) -> str:
    if isinstance(value, bool):
        return "bool"
    if isinstance(value, str):
        return "string"
    if isinstance(value, list):
        return "array"
    return "object" if isinstance(value, dict) else "number"


def _is(value: Any, kind: str) -> bool:
    if kind.startswith("[]"):
        return isinstance(value, list) and all(_is(item, kind[2:]) for item in value)
    if kind == "int":
        return isinstance(value, int) and not isinstance(value, bool)
    if kind == "interface {}":
        return True
    wanted: type = {"string": str, "bool": bool}.get(kind, dict)
    return isinstance(value, wanted)
