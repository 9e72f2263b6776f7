"""The physical lines of a batch's input, out of pieces that break anywhere.

A line ends at a line feed and nowhere else: U+2028, U+0085 and their kind may stand raw inside a
JSON string. Blank lines are counted and left out.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator

BOM = b"\xef\xbb\xbf"
_BREAK = b"\n"
_SLACK = len(BOM) + 1  # bytes of a line that are not its text: the mark and a carriage return
_SPACES = frozenset(b" \t\r\n\v\f")
_TEXT = re.compile(rb"\S")


class RawLine(NamedTuple):
    """One line that is not blank.

    `number` is physical, from 1; `start` and `length` are bytes of the file, without the line
    break, a carriage return before it and a leading byte order mark. `text` is None where the
    line is longer than allowed; its start and length may count what is left out of others.
    """

    number: int
    start: int
    length: int
    text: bytes | None


class LineSplitter:
    """Takes a file piece by piece; holds no more than one line that may be longest."""

    def __init__(self, most: int) -> None:
        """`most` is the longest line allowed, in bytes."""
        self._most = most
        self._number = 1
        self._start = 0  # of the line that has begun
        self._size = 0  # of what has come of it
        self._head: list[bytes] = []  # what has come of it; nothing once it is too long
        self._blank = True  # whether all that has come of it is

    def feed(self, piece: bytes) -> Iterator[RawLine]:
        """Yield the lines that end in this piece; the piece counts once all were taken."""
        at = 0
        while at < len(piece):
            if not self._size and piece[at] in _SPACES:
                at = self._skip(piece, at)
            end = piece.find(_BREAK, at)
            if end < 0:
                self._hold(piece[at:])
                return
            self._hold(piece[at:end])
            line = self._ended()
            at = end + 1
            self._next(self._start + self._size + 1, 1)
            if line is not None:
                yield line

    def close(self) -> Iterator[RawLine]:
        """Yield the last line, if the file does not end with a line break."""
        line = self._ended()
        if line is not None:
            yield line

    def _skip(self, piece: bytes, at: int) -> int:
        """Pass over blank lines at once; return where the first line begins that may not be one."""
        found = _TEXT.search(piece, at)
        stop = found.start() if found else len(piece)
        breaks = piece.count(_BREAK, at, stop)
        if not breaks:
            return at
        begin = piece.rfind(_BREAK, at, stop) + 1
        self._next(self._start + begin - at, breaks)
        return begin

    def _hold(self, part: bytes) -> None:
        self._size += len(part)
        self._blank = self._blank and (not part or part.isspace())
        if self._size > self._most + _SLACK:
            self._head.clear()
        elif part:
            self._head.append(part)

    def _ended(self) -> RawLine | None:
        if self._blank:
            return None
        if self._size > self._most + _SLACK:
            return RawLine(self._number, self._start, self._size, None)
        text = b"".join(self._head).removesuffix(b"\r")
        start = self._start
        if start == 0 and text.startswith(BOM):
            text, start = text[len(BOM) :], len(BOM)
        if not text or text.isspace():  # behind the mark
            return None
        length = len(text)
        return RawLine(self._number, start, length, text if length <= self._most else None)

    def _next(self, start: int, lines: int) -> None:
        self._number += lines
        self._start, self._size, self._blank = start, 0, True
        self._head.clear()
