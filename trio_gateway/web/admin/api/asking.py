"""Reads what a request says, strictly: what is not understood to the letter is refused."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar
from urllib.parse import parse_qsl

from pydantic import ValidationError
from quart import request

from trio_gateway.core.errors import InvalidCall, UnsupportedMedia
from trio_gateway.core.keys import PREFIX
from trio_gateway.core.officers import TOKEN_PREFIX
from trio_gateway.dialects.strict_json import parse_object
from trio_gateway.web.admin.api.shapes import Change

if TYPE_CHECKING:
    from trio_gateway.web.admin.api.shapes import Body, Query

Q = TypeVar("Q", bound="Query")
B = TypeVar("B", bound="Body")

MOST_FIELDS = 32  # of a query
_JSON = "application/json"


def read_query(shape: type[Q]) -> Q:
    """Return the query string in its shape; raises InvalidCall that names the parameter."""
    try:
        text = request.query_string.decode("ascii")
        pairs = parse_qsl(text, keep_blank_values=True, max_num_fields=MOST_FIELDS, errors="strict")
    except ValueError:
        raise InvalidCall("The query string is malformed.") from None
    given: dict[str, str] = {}
    for name, value in pairs:
        if name in given:
            raise InvalidCall(f"'{shown(name)}' appears twice.", param=shown(name))
        given[name] = value
    try:
        return shape.model_validate(given)
    except ValidationError as error:
        raise _invalid(error) from None


def read_body(shape: type[B], content: bytes) -> B:
    """Return a JSON body in its shape; an empty one says nothing. Raises InvalidCall."""
    if content:
        if request.mimetype != _JSON:
            raise UnsupportedMedia(f"The body must be {_JSON}.")
        parse_object(content, frozenset(shape.model_fields))
    try:
        found = shape.model_validate_json(content or b"{}")
    except ValidationError as error:
        raise _invalid(error) from None
    if isinstance(found, Change) and not found.model_fields_set:
        names = ", ".join(shape.model_fields)
        raise InvalidCall(f"Something to change must be named: {names}.")
    return found


def check_encoding() -> None:
    """Raise UnsupportedMedia for a body that is encoded."""
    if "content-encoding" in request.headers:
        raise UnsupportedMedia


def refuse_body(content: bytes) -> None:
    """Raise InvalidCall for a body where none belongs; `{}` says nothing."""
    if not content:
        return
    if request.mimetype != _JSON:
        raise UnsupportedMedia(f"The body must be {_JSON}.")
    for name in parse_object(content, frozenset()):
        raise InvalidCall(f"'{shown(name)}': there is no such field.", param=shown(name))


def shown(name: str) -> str:
    """Return a field's name as an error may show it: short, printable, never a secret."""
    if name.startswith((PREFIX, TOKEN_PREFIX)):
        return "…"
    return "".join(c if c.isprintable() else "?" for c in name[:64])


def _invalid(error: ValidationError) -> InvalidCall:
    first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    # what follows the first field in the place is the program's own word for a part of it
    param = shown(str(first["loc"][0])) if first["loc"] else None
    place = next((f"[{part}]" for part in first["loc"][1:] if isinstance(part, int)), "")
    if first["type"] == "extra_forbidden":
        return InvalidCall(f"'{param}': there is no such field.", param=param)
    if first["type"] == "missing":
        return InvalidCall(f"'{param}' is required.", param=param)
    sentence = first["msg"].removeprefix("Value error, ").replace("Input should", "it must", 1)
    return InvalidCall(f"'{param}{place}': {sentence}." if param else f"{sentence}.", param=param)
