"""Multipart bodies, taken apart as they come."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from werkzeug.sansio.multipart import Data, Epilogue, Field, File, MultipartDecoder, NeedData

from trio_gateway.core.errors import InvalidCall

if TYPE_CHECKING:
    from collections.abc import Iterator

    from werkzeug.sansio.multipart import Event

__all__ = ["Data", "Decoder", "Epilogue", "Field", "File"]

MALFORMED = "The multipart body is malformed, or cut off."
_PADDING = 64  # spaces that may follow a boundary


class Decoder:
    """Werkzeug's decoder, for pieces that end anywhere.

    Alone, it takes a delimiter for data where a piece ends behind the first `-` of its last two,
    or within the spaces that may follow it: these are held back until more has come.
    """

    def __init__(self, boundary: bytes) -> None:
        """`boundary` as the Content-Type has it."""
        self._decoder = MultipartDecoder(boundary)
        self._undecided = re.compile(rb"--%b(-|[ \t]{1,%d})\Z" % (re.escape(boundary), _PADDING))
        self._window = len(boundary) + _PADDING + 2
        self._held = b""

    def feed(self, piece: bytes) -> Iterator[Event]:
        """Yield the events of the next piece; an empty one is the end. Raises InvalidCall."""
        fresh = self._held + piece
        self._held = b""
        if piece:
            seen = bytes(self._decoder.buffer[-self._window :]) + fresh
            found = self._undecided.search(seen, max(0, len(seen) - self._window))
            if found is not None:
                self._held = found[1]
                fresh = fresh[: len(fresh) - len(self._held)]
        try:
            if fresh:
                self._decoder.receive_data(fresh)
            if not piece:
                self._decoder.receive_data(None)
            while not isinstance(event := self._decoder.next_event(), NeedData):
                yield event
                if isinstance(event, Epilogue):
                    return
        except ValueError:  # its texts may quote the body
            raise InvalidCall(MALFORMED) from None
