"""Pages: one row more than asked for is read, which tells whether another page follows."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from trio_gateway.core.errors import InvalidCall

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

_ID = re.compile(r"[1-9][0-9]{0,17}")


def page(
    rows: Sequence[Mapping[str, Any]], limit: int, place: Callable[[Mapping[str, Any]], object]
) -> dict[str, Any]:
    """Return a page of `limit + 1` rows; `place` is where the next one goes on."""
    more = len(rows) > limit
    shown = list(rows[:limit])
    return {"data": shown, "next": str(place(shown[-1])) if more else None}


def numbered(cursor: str | None) -> int | None:
    """Return the id that a cursor holds; raises InvalidCall."""
    if cursor is not None and not _ID.fullmatch(cursor):
        raise malformed()
    return None if cursor is None else int(cursor)


def malformed() -> InvalidCall:
    """Return the error for a cursor that no page gave."""
    return InvalidCall("'cursor' must be the `next` of a page of this list.", param="cursor")
