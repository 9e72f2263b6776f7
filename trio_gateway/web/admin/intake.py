"""Requests whose body is taken in to its end, also where it was refused before it was read.

A connection on which a part of a body is left unread would leave its next request unanswered.
"""

from __future__ import annotations

from typing import cast

import trio
from quart import request
from quart_trio.wrappers import TrioRequest
from quart_trio.wrappers.request import TrioBody

TAKE_IN = 1.0  # seconds for the rest of a body that nobody wants


class Body(TrioBody):
    """A body; beyond its limit it is dropped as it comes."""

    async def taken_in(self) -> None:
        """Wait for its end."""
        await self._complete.wait()


class AdminRequest(TrioRequest):
    """A request with such a body."""

    body_class = Body


async def take_in() -> bool:
    """Take in what the present request has yet to send; False where its end did not come."""
    with trio.move_on_after(TAKE_IN):
        await cast("Body", request.body).taken_in()
        return True
    return False
