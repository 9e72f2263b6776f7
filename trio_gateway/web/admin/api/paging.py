"""Pages: one row more than asked for is read, which tells whether another page follows."""

from __future__ import annotations

import base64
import re
from typing import TYPE_CHECKING, Any

from trio_gateway.core.errors import InvalidCall

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

_ID = re.compile(r"[1-9][0-9]{0,17}")
_NAMED = "after "  # what a cursor holds before a name


def page(
    rows: Sequence[Mapping[str, Any]], limit: int, place: Callable[[Mapping[str, Any]], object]
) -> dict[str, Any]:
    """Return a page of `limit + 1` rows; `place` is where the next one goes on."""
    more = len(rows) > limit
    shown = list(rows[:limit])
    return {"data": shown, "next": str(place(shown[-1])) if more else None}


def numbered(cursor: str | None) -> int | None:
    """Return the id that a cursor holds, below which there is another; raises InvalidCall."""
    if cursor is not None and (not _ID.fullmatch(cursor) or cursor == "1"):
        raise malformed()
    return None if cursor is None else int(cursor)


def after(name: str) -> str:
    """Return the cursor of a list by name."""
    return base64.urlsafe_b64encode(f"{_NAMED}{name}".encode()).decode()


def named(cursor: str | None) -> str:
    """Return the name that a cursor holds, empty for none; raises InvalidCall."""
    if cursor is None:
        return ""
    try:
        text = base64.b64decode(cursor.encode("ascii"), b"-_", validate=True).decode()
    except ValueError:
        raise malformed() from None
    if not text.startswith(_NAMED):
        raise malformed()
    return text.removeprefix(_NAMED)


def malformed() -> InvalidCall:
    """Return the error for a cursor that no page gave."""
    return InvalidCall("'cursor' must be the `next` of a page of this list.", param="cursor")
