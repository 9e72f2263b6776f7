"""What cannot be read as HTTP/1.1 is answered in the application's own words.

Hypercorn answers it before any application is called: with a status alone.

The seam is the name under which hypercorn finds the class of a connection's protocol.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import h11
import hypercorn.protocol
from hypercorn.protocol.h11 import H11Protocol
from hypercorn.protocol.http_stream import HTTPStream

if TYPE_CHECKING:
    from collections.abc import Callable

    Words = Callable[[int, str], tuple[list[tuple[bytes, bytes]], bytes]]


def answer_unreadable(words: Words) -> None:
    """Answer so on every connection of this process, from now on.

    `words` gets the status and the raw path, empty where none could be read, and returns the
    headers and the body.
    """

    class AnsweringProtocol(H11Protocol):
        async def _send_error_response(self, status_code: int) -> None:
            asked = self.stream.scope if isinstance(self.stream, HTTPStream) else None
            headers, body = words(status_code, asked["raw_path"].decode("latin-1") if asked else "")
            own = [(b"content-length", b"%d" % len(body)), (b"connection", b"close")]
            every = [*headers, *own, *self.config.response_headers("h11")]
            await self._send_h11_event(h11.Response(status_code=status_code, headers=every))
            if asked is None or asked["method"] != "HEAD":
                await self._send_h11_event(h11.Data(data=body))
            await self._send_h11_event(h11.EndOfMessage())

    vars(hypercorn.protocol)["H11Protocol"] = AnsweringProtocol
