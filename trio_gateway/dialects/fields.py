"""Typed getters for parsed bodies; each refusal names the field and the rule, never the value.

Every getter takes the object, the key, and `at`, the path of the object (empty at the
top). Absent and null are the same: None. All raise InvalidCall with `param` = the path.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, TypeVar

from trio_gateway.core.errors import InvalidCall

if TYPE_CHECKING:
    from collections.abc import Mapping

INT64_MIN, INT64_MAX = -(2**63), 2**63 - 1
INT32_MAX = 2**31 - 1
_EXACT = 2.0**53  # past this a double no longer holds every whole number

T = TypeVar("T")
Json = dict[str, Any]


def path(key: str | int, at: str = "") -> str:
    """Return a field's path as `param` shows it: `options.stop`, `messages[0].content`."""
    if isinstance(key, int):
        return f"{at}[{key}]"
    return f"{at}.{key}" if at else key


def refusal(param: str, rule: str) -> InvalidCall:
    """Return the exception for a broken rule, worded `'<param>' <rule>.`."""
    return InvalidCall(f"'{param}' {rule}.", param=param)


def required(value: T | None, key: str, at: str = "") -> T:
    """Return `value`, refusing None."""
    if value is None:
        raise refusal(path(key, at), "is required")
    return value


def text(source: Mapping[str, Any], key: str, at: str = "", *, most: int = 0) -> str | None:
    """Return a string; `most` bounds its characters where it is not 0."""
    value = source.get(key)
    if value is None:
        return None
    if type(value) is not str:
        raise refusal(path(key, at), "must be a string")
    if most and len(value) > most:
        raise refusal(path(key, at), f"must be at most {most} characters long")
    return value


def boolean(source: Mapping[str, Any], key: str, at: str = "") -> bool | None:
    """Return true or false; no other type stands for them."""
    value = source.get(key)
    if value is None or value is True or value is False:
        return value
    raise refusal(path(key, at), "must be true or false")


def integer(
    source: Mapping[str, Any],
    key: str,
    at: str = "",
    *,
    low: int = INT64_MIN,
    high: int = INT64_MAX,
) -> int | None:
    """Return a whole number from `low` to `high`; 5.0 is one, true is not."""
    value = source.get(key)
    if value is None:
        return None
    if type(value) is float and value.is_integer() and abs(value) <= _EXACT:
        value = int(value)
    if type(value) is not int:
        raise refusal(path(key, at), "must be an integer")
    if not low <= value <= high:
        raise refusal(path(key, at), _range(low, high, "an integer"))
    return value


def number(
    source: Mapping[str, Any],
    key: str,
    at: str = "",
    *,
    low: float = -1e6,
    high: float = 1e6,
) -> float | None:
    """Return a number from `low` to `high`, an int where the caller wrote one."""
    value = source.get(key)
    if value is None:
        return None
    if type(value) is not int and (type(value) is not float or not math.isfinite(value)):
        raise refusal(path(key, at), "must be a number")
    if not low <= value <= high:
        raise refusal(path(key, at), _range(low, high, "a number"))
    return value


def choice(
    source: Mapping[str, Any], key: str, allowed: tuple[str, ...], at: str = ""
) -> str | None:
    """Return one of the allowed strings."""
    value = text(source, key, at)
    if value is not None and value not in allowed:
        raise refusal(path(key, at), f"must be one of {', '.join(allowed)}")
    return value


def array(source: Mapping[str, Any], key: str, at: str = "", *, most: int = 0) -> list[Any] | None:
    """Return a list; `most` bounds its items where it is not 0."""
    value = source.get(key)
    if value is None:
        return None
    if type(value) is not list:
        raise refusal(path(key, at), "must be an array")
    if most and len(value) > most:
        raise refusal(path(key, at), f"must have at most {most} items")
    return value


def texts(source: Mapping[str, Any], key: str, at: str = "", *, most: int = 0) -> list[str] | None:
    """Return a list whose items are all strings."""
    value = array(source, key, at, most=most)
    if value is not None and not all(type(item) is str for item in value):
        raise refusal(path(key, at), "must be an array of strings")
    return value


def objects(
    source: Mapping[str, Any], key: str, at: str = "", *, most: int = 0
) -> list[Json] | None:
    """Return a list whose items are all objects."""
    value = array(source, key, at, most=most)
    if value is not None and not all(type(item) is dict for item in value):
        raise refusal(path(key, at), "must be an array of objects")
    return value


def mapping(source: Mapping[str, Any], key: str, at: str = "") -> Json | None:
    """Return an object."""
    value = source.get(key)
    if value is None or type(value) is dict:
        return value
    raise refusal(path(key, at), "must be an object")


def size(value: str) -> int:
    """Return the length of a string in UTF-8 bytes, without a copy where it is ASCII."""
    return len(value) if value.isascii() else len(value.encode())


def _range(low: float, high: float, noun: str) -> str:
    return f"must be {noun} from {low} to {high}"
