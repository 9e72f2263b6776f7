"""The tool calls of an answer: numbered from 0, each with its own id, arguments as text."""

from __future__ import annotations

import secrets
from typing import TYPE_CHECKING, Any

import orjson

if TYPE_CHECKING:
    from collections.abc import Iterable


class Numbering:
    """Gives the tool calls of one answer their places.

    Upstream repeats index 0, leaves ids out, and spreads calls over chunks; clients add up
    by index, so indices must be contiguous and ids unique over the whole answer.
    """

    def __init__(self, *, single: bool) -> None:
        """`single` drops every call but the first."""
        self._single = single
        self._ids: set[str] = set()

    @property
    def count(self) -> int:
        """How many calls were taken; also the next call's index."""
        return len(self._ids)

    def take(self, raw: Iterable[Any]) -> list[dict[str, Any]]:
        """Shape upstream's calls as `{"id", "type", "function": {"name", "arguments"}}`."""
        taken = []
        for entry in raw:
            if self._single and self._ids:
                break
            function = entry.get("function") if isinstance(entry, dict) else None
            if isinstance(function, dict):
                shaped = {
                    "name": str(function.get("name", "")),
                    "arguments": _text(function.get("arguments")),
                }
                taken.append({"id": self._id(entry), "type": "function", "function": shaped})
        return taken

    def _id(self, entry: dict[str, Any]) -> str:
        given = entry.get("id")
        unique = isinstance(given, str) and given and given not in self._ids
        chosen = str(given) if unique else f"call_{secrets.token_hex(12)}"
        self._ids.add(chosen)
        return chosen


def _text(arguments: Any) -> str:
    if isinstance(arguments, str):
        return arguments or "{}"
    return orjson.dumps({} if arguments is None else arguments).decode()
