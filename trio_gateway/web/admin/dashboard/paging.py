"""Pages of long lists, and what the address asks for."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta

from quart import request

from trio_gateway.services.account_rows import Refused

PAGE = 50  # rows
MOST = 200  # characters of an argument
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_PLACE = re.compile(r"(-?[0-9]{1,17})\.([A-Za-z0-9_-]{1,100})")
_NUMBER = re.compile(r"[0-9]{1,18}")


def argument(name: str) -> str:
    """Return an argument of the address, empty where there is none."""
    return request.args.get(name, "").strip()[:MOST]


def number_in(name: str) -> int | None:
    """Return a number from the address. Raises Refused."""
    text = argument(name)
    if text and not _NUMBER.fullmatch(text):
        raise Refused("must be a number", name)
    return int(text) if text else None


def instant_in(name: str) -> datetime | None:
    """Return an instant from the address, in UTC where it names no zone. Raises Refused."""
    text = argument(name)
    if not text:
        return None
    try:
        at = datetime.fromisoformat(text)
        at = (at if at.tzinfo else at.replace(tzinfo=UTC)).astimezone(UTC)
    except (ValueError, OverflowError):
        at = datetime.fromtimestamp(-1, UTC)
    if not 1970 <= at.year < 9000:
        raise Refused("must be a date and a time such as 2030-12-31T23:59, in UTC", name)
    return at


def place_in(name: str) -> tuple[datetime, str] | None:
    """Return where a list by time and id goes on, as `place_of` wrote it. Raises Refused."""
    text = argument(name)
    found = _PLACE.fullmatch(text)
    if text and found is None:
        raise Refused("must be the end of a page", name)
    try:
        return (EPOCH + timedelta(microseconds=int(found[1])), found[2]) if found else None
    except OverflowError:
        raise Refused("must be the end of a page", name) from None


def place_of(at: datetime, row_id: str) -> str:
    """Write the place of a row in a list by time and id."""
    return f"{(at - EPOCH) // timedelta(microseconds=1)}.{row_id}"


def one_of(name: str, options: tuple[str, ...], usual: str | None = None) -> str:
    """Return what the address chooses, the usual or first option if nothing. Raises Refused."""
    text = argument(name) or usual or options[0]
    if text not in options:
        raise Refused(f"must be one of {', '.join(filter(None, options))}", name)
    return text
