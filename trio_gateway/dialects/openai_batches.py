"""/v1/batches: what a caller may ask for, and the batch in OpenAI's shape.

Some clients show nothing of an error but its message, so each message names the field, the
rule and the code's word by itself. A caller's value in it is cut to 100 characters.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl

import orjson

from trio_gateway.core.batches import ENDPOINTS, WINDOW, Wanted
from trio_gateway.core.errors import InvalidCall
from trio_gateway.dialects.strict_json import parse_object, refuse_twins

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from datetime import datetime

    from trio_gateway.core.batches import Batch

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
PAGE, MOST_PAGE = 20, 100

_EXPIRY = frozenset({"anchor", "seconds"})
_LIMIT = re.compile(r"[0-9]{1,3}", re.ASCII)
_MOST_QUERY_FIELDS = 32
_KINDS = {
    list: "an array",
    dict: "an object",
    bool: "a boolean",
    int: "an integer",
    float: "a number",
    str: "a string",
}

Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Page:
    """Which part of the list is wanted: so many, after this id."""

    limit: int = PAGE
    after: str | None = None


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
    return _key(text)


def parse_page(query: bytes) -> Page:
    """Read `limit` and `after` from a raw query string. Raises InvalidCall."""
    try:
        pairs = parse_qsl(
            query.decode("latin-1"), keep_blank_values=True, max_num_fields=_MOST_QUERY_FIELDS
        )
    except ValueError:
        raise InvalidCall("The query has too many fields.") from None
    given = [(name, value) for name, value in pairs if name in {"limit", "after"}]
    found = dict(given)
    if len(found) < len(given):
        raise InvalidCall("'limit' and 'after' may each appear once only.")
    text = found.get("limit", str(PAGE))
    if not _LIMIT.fullmatch(text) or not 1 <= int(text) <= MOST_PAGE:
        raise _refusal("limit", f"'limit' must be an integer from 1 to {MOST_PAGE}.")
    return Page(int(text), found.get("after") or None)


def render(batch: Batch) -> bytes:
    """Encode one batch."""
    return orjson.dumps(shape(batch))


def render_list(batches: Sequence[Batch], *, has_more: bool) -> bytes:
    """Encode one page of the list, in the order given; an empty one has null for its ids."""
    page = {
        "object": "list",
        "data": [shape(batch) for batch in batches],
        "first_id": batches[0].id if batches else None,
        "last_id": batches[-1].id if batches else None,
        "has_more": has_more,
    }
    return orjson.dumps(page)


def shape(batch: Batch) -> Json:
    """Return the object; every key is always there, and times are whole unix seconds."""
    errors = [error.shape() for error in batch.errors or ()]
    return {
        "id": batch.id,
        "object": "batch",
        "endpoint": batch.endpoint,
        "model": batch.models[0] if len(batch.models) == 1 else None,
        "errors": {"object": "list", "data": errors} if errors else None,
        "input_file_id": batch.input_file_id,
        "completion_window": batch.completion_window,
        "status": batch.status,
        "output_file_id": batch.output_file_id,
        "error_file_id": batch.error_file_id,
        "created_at": _seconds(batch.created_at),
        "in_progress_at": _seconds(batch.in_progress_at),
        "expires_at": _seconds(batch.expires_at),
        "finalizing_at": _seconds(batch.finalizing_at),
        "completed_at": _seconds(batch.completed_at),
        "failed_at": _seconds(batch.failed_at),
        "expired_at": _seconds(batch.expired_at),
        "cancelling_at": _seconds(batch.cancelling_at),
        "cancelled_at": _seconds(batch.cancelled_at),
        "request_counts": {
            "total": batch.total,
            "completed": batch.completed,
            "failed": batch.failed,
        },
        "usage": {
            "input_tokens": batch.input_tokens,
            "input_tokens_details": {"cached_tokens": 0},
            "output_tokens": batch.output_tokens,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": batch.input_tokens + batch.output_tokens,
        },
        "metadata": batch.metadata,
        "paused": batch.paused,
    }


def echo(value: str) -> str:
    """Return a caller's value as a message may show it."""
    seen = value if len(value) <= MOST_ECHO else value[: MOST_ECHO - 1] + "…"
    return "".join(c if c.isprintable() else "?" for c in seen)


def _seconds(moment: datetime | None) -> int | None:
    return None if moment is None else int(moment.timestamp())


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
