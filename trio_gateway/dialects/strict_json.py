"""Request bodies, read so that no other JSON reader can read them differently.

Ollama's reader folds case, takes the last of two equal keys and ignores what follows the
first value. A body on which it and the gateway could disagree is refused here: the
gateway only ever forwards what it understood itself.

orjson gives the value and refuses bad UTF-8, lone surrogates, byte order marks, NaN,
numbers past a double and trailing content. It keeps the last of two equal keys in
silence, so a second pass of the standard library's scanner looks for those alone.

Neither can be interrupted, and what they cost is not the bytes of a body but what it is made
of: ten million empty arrays take longer, and far more memory, than a text as long. A crowd is
refused before anything is made of it.
"""

from __future__ import annotations

import json
from functools import lru_cache
from typing import Any, NoReturn

import orjson

from trio_gateway.core.errors import InvalidCall

MAX_DEPTH = 64
MAX_MARKS = 131_072  # objects, arrays and named fields in one body,
MAX_VALUES = 524_288  # and items of all kinds with them
CROWDED = f"more than {MAX_MARKS} objects, arrays and fields, or {MAX_VALUES} values"
_PLAIN = bytes({*range(256)} - {*b":{[,"})  # what makes no piece,
_UNQUOTED = _PLAIN.replace(b'"', b"")  # and begins or ends no string


def parse_object(body: bytes, known: frozenset[str]) -> dict[str, Any]:
    """Return the object that `body` holds; `known` are the names of its top-level fields.

    Raises InvalidCall. Its `param` is a known name or None: never a word of the caller's.
    """
    if not body:
        raise InvalidCall("The request body is empty.")
    if crowded(body):
        raise InvalidCall(f"The request body holds {CROWDED}.")
    try:
        value = orjson.loads(body)
    except orjson.JSONDecodeError:
        raise InvalidCall("The request body is not valid JSON.") from None
    if type(value) is not dict:
        raise InvalidCall("The request body must be a JSON object.")
    if body.count(b"{") + body.count(b"[") > MAX_DEPTH:
        _refuse_depth(value)
    _refuse_repeats(body, known)
    refuse_twins(value, known)
    return value


def crowded(text: bytes) -> bool:
    """Whether a JSON text is made of more pieces than a body may have; cheap at any length."""
    # Few texts come near it even where their strings count as well.
    return len(text) > MAX_MARKS and _many(text) and _many(_outside_strings(text))


class Crowd:
    """Counts the objects, arrays and fields of several JSON texts in one body."""

    __slots__ = ("_least", "_most")

    def __init__(self) -> None:
        """Begin with none."""
        self._most = self._least = 0

    def add(self, text: bytes) -> bool:
        """Count one more, and return whether they are too many: MAX_MARKS, or up to twice that."""
        # What stands in strings is told apart only from where it could matter.
        self._most += _marks(text)
        if self._most > MAX_MARKS:
            self._least += _marks(_outside_strings(text))
        return self._least > MAX_MARKS


def refuse_twins(value: dict[str, Any], known: frozenset[str], at: str = "") -> None:
    """Raise InvalidCall for a key that differs from a known one only in letter case.

    Case is Unicode's, so that U+212A is a K and U+017F an s. `at` is the object's path.
    """
    if value.keys() <= known:
        return
    folded = _folded(known)
    for key in value.keys() - known:
        name = folded.get(key.casefold())
        if name is not None:
            param = f"{at}.{name}" if at else name
            raise InvalidCall(f"'{param}' must be spelled in its exact letter case.", param=param)


@lru_cache(maxsize=64)
def _folded(known: frozenset[str]) -> dict[str, str]:
    return {name.casefold(): name for name in known}


def _many(text: bytes) -> bool:
    pieces = text.translate(None, _PLAIN)
    return len(pieces) > MAX_VALUES or len(pieces) - pieces.count(b",") > MAX_MARKS


def _marks(text: bytes) -> int:
    return text.count(b":") + text.count(b"{") + text.count(b"[")


def _outside_strings(text: bytes) -> bytes:
    """Return the marks and commas of a JSON text that stand in no string.

    Of one with more strings than it can have pieces, these as well.
    """
    if b"\\" in text:
        text = text.replace(b"\\\\", b"").replace(b'\\"', b"")
    text = text.translate(None, _UNQUOTED)
    if text.count(b'"') > 2 * (MAX_MARKS + MAX_VALUES):
        return text
    return b"".join(text.split(b'"')[::2])


def _refuse_depth(value: Any) -> None:
    level = [value]
    for _ in range(MAX_DEPTH):
        level = [
            item
            for outer in level
            for item in (outer.values() if type(outer) is dict else outer)
            if type(item) is dict or type(item) is list
        ]
        if not level:
            return
    raise InvalidCall(f"The request body is nested deeper than {MAX_DEPTH} levels.")


class _RepeatError(Exception):
    """Raised inside the scanner at the first object with two equal keys."""


def _unique(pairs: list[tuple[str, Any]]) -> None:
    if len(dict(pairs)) != len(pairs):
        raise _RepeatError


_SCANNER = json.JSONDecoder(object_pairs_hook=_unique, parse_int=len, parse_float=len)


def _refuse_repeats(body: bytes, known: frozenset[str]) -> None:
    text = body.decode()
    try:
        _SCANNER.decode(text)
    except _RepeatError:
        _raise_repeat(text, known)


def _raise_repeat(text: str, known: frozenset[str]) -> NoReturn:
    """Scan again, keeping every pair, to name the field in which a key stands twice."""
    top = json.loads(text, object_pairs_hook=tuple, parse_int=len, parse_float=len)
    seen: set[str] = set()
    for key, value in top:
        if key in known and (key in seen or _repeats(value)):
            raise InvalidCall(f"'{key}' holds or is a duplicate key.", param=key)
        seen.add(key)
    raise InvalidCall("The request body holds a duplicate key.")


def _repeats(value: Any) -> bool:
    """Whether a tree of pairs (tuples are objects) holds an object with two equal keys."""
    stack = [value]
    while stack:
        item = stack.pop()
        if type(item) is tuple:
            if len(dict(item)) != len(item):
                return True
            stack.extend(inner for _, inner in item)
        elif type(item) is list:
            stack.extend(item)
    return False
