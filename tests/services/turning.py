"""Turning the pages of a list to its end."""

from __future__ import annotations


async def turned(ask, place, size, first=None):
    """Return all rows; no page may be larger than `size`, and only the last is short."""
    found, at = [], first
    while True:
        page = await ask(at)
        found += page
        if len(page) < size:
            return found
        assert len(page) == size
        at = place(page[-1])
