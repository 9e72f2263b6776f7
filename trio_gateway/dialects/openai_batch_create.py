"""The body that creates a batch: what a caller may ask for.

Some clients show nothing of an error but its message, so each message names the field, the
rule and the code's word by itself. A caller's value in it is cut to 100 characters.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from trio_gateway.core.batches import ENDPOINTS, WINDOW, Wanted
from trio_gateway.core.errors import InvalidCall
from trio_gateway.dialects.strict_json import parse_object, refuse_twins

if TYPE_CHECKING:
    from collections.abc import Iterable

KNOWN = frozenset(
    {
        "input_file_id",
        "endpoint",
        "completion_window",
        "metadata",
        "output_expires_after",
        "idempotency_key",
    }
)
HEADER = b"idempotency-key"
MOST_FILE_ID = 128  # characters, as all of these
MOST_KEY = 255
MOST_PAIRS = 16
MOST_PAIR_NAME = 64
MOST_PAIR_VALUE = 512
MOST_ECHO = 100
LEAST_KEPT, MOST_KEPT = 3600, 2_592_000  # seconds

_EXPIRY = frozenset({"anchor", "seconds"})
_KINDS = {
    list: "an array",
    dict: "an object",
    bool: "a boolean",
    int: "an integer",
    float: "a number",
    str: "a string",
}

Json = dict[str, Any]


def parse_create(body: bytes, header_key: str | None = None) -> Wanted:
    """Parse a request body; `header_key` is the key that came as a header. Raises InvalidCall."""
    raw = parse_object(body, KNOWN)
    endpoint = _choice(raw, "endpoint", ENDPOINTS)
    window = _choice(raw, "completion_window", (WINDOW,))
    return Wanted(
        input_file_id=_file_id(raw),
        endpoint=endpoint,
        completion_window=window,
        metadata=_metadata(raw.get("metadata")),
        output_expires_after=_kept_for(raw.get("output_expires_after")),
        idempotency_key=_one_key(raw.get("idempotency_key"), header_key),
    )


def header_key(headers: Iterable[tuple[bytes, bytes]]) -> str | None:
    """Return the key of the `Idempotency-Key` header without its quotes. Raises InvalidCall."""
    values = [value for name, value in headers if name == HEADER]
    if not values:
        return None
    if len(values) > 1:
        raise _refusal("idempotency_key", "The header Idempotency-Key may appear once only.")
    try:
        text = values[0].decode().strip(" \t")
    except UnicodeDecodeError:
        raise _unfit_key() from None
    if len(text) > 1 and text[0] == text[-1] == '"':
        text = text[1:-1]
    if text == '"' or text.startswith('"') != text.endswith('"'):
        raise _refusal(
            "idempotency_key",
            "The header Idempotency-Key has a double quote without its other half.",
        )
    return _key(text)


def echo(value: str) -> str:
    """Return a caller's value as a message may show it."""
    seen = value if len(value) <= MOST_ECHO else value[: MOST_ECHO - 1] + "…"
    return "".join(c if c.isprintable() else "?" for c in seen)


def _refusal(param: str, message: str, code: str = "invalid_value") -> InvalidCall:
    return InvalidCall(message, param=param, code=code)


def _wrong_type(param: str, noun: str, value: Any) -> InvalidCall:
    found = _KINDS.get(type(value), "null")
    rule = f"Invalid type for '{param}': it should be a valid {noun}, but got {found} instead."
    return _refusal(param, rule, "invalid_type")


def _present(raw: Json, key: str, at: str = "") -> Any:
    value = raw.get(key)
    if value is None:
        param = f"{at}{key}"
        missing = f"Missing required parameter: '{param}'."
        raise _refusal(param, missing, "missing_required_parameter")
    return value


def _text(value: Any, param: str) -> str:
    if type(value) is not str:
        raise _wrong_type(param, "string", value)
    return value


def _choice(raw: Json, key: str, allowed: tuple[str, ...], at: str = "") -> str:
    """Return one of the allowed strings."""
    param = f"{at}{key}"
    value = _text(_present(raw, key, at), param)
    if value not in allowed:
        supported = ", ".join(f"'{each}'" for each in allowed)
        raise _refusal(
            param,
            f"Invalid {param}: invalid value '{echo(value)}' for '{param}' (invalid_value);"
            f" supported values are: {supported}.",
        )
    return value


def _file_id(raw: Json) -> str:
    value = _text(_present(raw, "input_file_id"), "input_file_id")
    if not 1 <= len(value) <= MOST_FILE_ID or not value.isprintable():
        raise _refusal(
            "input_file_id",
            "Invalid 'input_file_id' (invalid_value):"
            f" it must be 1 to {MOST_FILE_ID} printable characters.",
        )
    return value


def _metadata(value: Any) -> dict[str, str] | None:
    if value is None:
        return None
    if type(value) is not dict:
        raise _wrong_type("metadata", "object", value)
    if len(value) > MOST_PAIRS:
        raise _refusal(
            "metadata",
            f"Too many properties in 'metadata': {len(value)} of at most {MOST_PAIRS}.",
            "object_above_max_properties",
        )
    for name, text in value.items():
        _check_pair(name, text)
    return value


def _check_pair(name: str, value: Any) -> None:
    param = f"metadata.{echo(name)}"
    if len(name) > MOST_PAIR_NAME:
        raise _refusal(
            param,
            f"Too long a name in 'metadata': '{echo(name)}' has {len(name)} characters"
            f" of at most {MOST_PAIR_NAME}.",
            "property_name_above_max_length",
        )
    text = _text(value, param)
    if len(text) > MOST_PAIR_VALUE:
        raise _refusal(
            param,
            f"Too long a string for '{param}': {len(text)} characters"
            f" of at most {MOST_PAIR_VALUE}.",
            "string_above_max_length",
        )
    if "\0" in name or "\0" in text:
        raise _refusal(param, f"Invalid '{param}' (invalid_value): it holds a NUL character.")


def _kept_for(value: Any) -> int | None:
    """Return for how many seconds the results are kept, counted from their own creation."""
    at = "output_expires_after"
    if value is None:
        return None
    if type(value) is not dict:
        raise _wrong_type(at, "object", value)
    refuse_twins(value, _EXPIRY, at)
    _choice(value, "anchor", ("created_at",), f"{at}.")
    seconds = _present(value, "seconds", f"{at}.")
    if type(seconds) is not int:
        raise _wrong_type(f"{at}.seconds", "integer", seconds)
    if not LEAST_KEPT <= seconds <= MOST_KEPT:
        raise _refusal(
            f"{at}.seconds",
            f"Invalid '{at}.seconds' (invalid_value):"
            f" it must be an integer from {LEAST_KEPT} to {MOST_KEPT}.",
        )
    return seconds


def _one_key(value: Any, from_header: str | None) -> str | None:
    """Return the one key that body and header name."""
    if value is None:
        return from_header
    key = _key(_text(value, "idempotency_key"))
    if from_header is not None and from_header != key:
        raise _refusal(
            "idempotency_key",
            "The 'idempotency_key' of the body and the header Idempotency-Key are different.",
        )
    return key


def _key(text: str) -> str:
    if not 1 <= len(text) <= MOST_KEY or not text.isprintable():
        raise _unfit_key()
    return text


def _unfit_key() -> InvalidCall:
    return _refusal(
        "idempotency_key",
        "Invalid 'idempotency_key' (invalid_value):"
        f" it must be 1 to {MOST_KEY} printable characters.",
    )
