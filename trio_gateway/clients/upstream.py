"""The door to Ollama: one call out, its lines in, every failure renamed to ours."""

from __future__ import annotations

import contextlib
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import httpx
import orjson
import trio

from trio_gateway.clients.refusals import RETRY_AFTER, refusal
from trio_gateway.core.errors import Unreachable, UpstreamError, UpstreamTimeout

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from types import TracebackType
    from typing import Self

    from trio_gateway.core.errors import GatewayError

LINE_LIMIT = 8 * 1024 * 1024  # what Ollama's own client allows
JSON_LIMIT = 16 * 1024 * 1024
REFUSAL_LIMIT = 64 * 1024
CLOSE_LIMIT = 1.0
UNLIMITED = contextlib.nullcontext()

# Nothing of the caller's request travels as a header.
HEADERS = [
    (b"Content-Type", b"application/json"),
    (b"Accept", b"application/x-ndjson, application/json"),
    (b"Accept-Encoding", b"identity"),
    (b"User-Agent", b"trio-gateway"),
]


@dataclass(frozen=True, slots=True)
class Timeouts:
    """Limits in seconds. `first_byte` runs until the first whole line, from the dispatch on."""

    connect: float = 5
    first_byte: float = 300
    idle: float = 60
    metadata: float = 10  # all of a get_json or post_json


class Report(Protocol):
    """Hears whether a host could be reached."""

    def __call__(self, backend: str, /, *, ok: bool) -> None:
        """Take the news; it must not raise."""


class Patience(Protocol):
    """The caller's own cancel scope, around all of a reply."""

    def allow(self, seconds: float, /) -> None:
        """Let what follows last so long; should it last longer, the scope cancels it."""


class mapped_errors:  # noqa: N801 - reads as a block, as contextlib's do
    """A block whose foreign errors become UpstreamError and its kin.

    It stands around opening and around each read, so that a dying upstream is never taken
    for a clean end. A class: a generator would cost more than the read on the hot path.
    """

    def __enter__(self) -> None:
        """Nothing to prepare."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        """Raise ours in place of theirs; Cancelled, alone or in a group, passes untouched."""
        if isinstance(error, httpx.TimeoutException):
            raise UpstreamTimeout from error
        if isinstance(error, httpx.ConnectError):
            raise Unreachable(retry_after=RETRY_AFTER) from error
        if isinstance(
            error, (httpx.HTTPError, httpx.InvalidURL, OSError, trio.BrokenResourceError)
        ):
            raise UpstreamError from error


class Upstream:
    """Asks a model server. The transport is the seam: the tests put a simulated Ollama there.

    `report(base_url, ok=...)` hears after each call whether the host could be reached at all.
    """

    def __init__(
        self,
        transport: httpx.AsyncBaseTransport,
        timeouts: Timeouts | None = None,
        *,
        line_limit: int = LINE_LIMIT,
        report: Report | None = None,
    ) -> None:
        """`line_limit` is in bytes and bounds what one reply may keep in memory."""
        self._transport = transport
        self._timeouts = timeouts or Timeouts()
        self._line_limit = line_limit
        self._report = report or _unheard
        self._urls: dict[tuple[str, str], httpx.URL] = {}
        self._extensions = {"timeout": {"connect": self._timeouts.connect}}

    @contextlib.asynccontextmanager
    async def open(
        self, base_url: str, path: str, body: bytes, patience: Patience | None = None
    ) -> AsyncIterator[Reply]:
        """POST the body and yield the Reply once its first bytes are there.

        Leaving the block closes the connection at once unless the reply was read to its end,
        which is what stops the GPU. Raises InvalidCall, ModelNotFound, UpstreamUnavailable,
        UpstreamTimeout or UpstreamError. With `patience` the limits of waiting are its
        business, and UpstreamTimeout is the caller's to raise: that saves a scope for each read.
        """
        deadline = trio.current_time() + self._timeouts.first_byte
        if patience is not None:
            patience.allow(self._timeouts.first_byte)
            deadline = math.inf
        request = self._request("POST", base_url, path, body)
        async with self._answer(request, deadline, base_url) as response:
            reply = Reply(response, deadline, self._timeouts.idle, self._line_limit, patience)
            await reply.begin()
            yield reply

    async def get_json(self, base_url: str, path: str) -> dict[str, Any]:
        """GET a metadata object; raises as `open`, and UpstreamError for anything else."""
        return await self._json("GET", base_url, path, b"")

    async def post_json(self, base_url: str, path: str, body: bytes) -> dict[str, Any]:
        """POST for a metadata object; raises as `get_json`."""
        return await self._json("POST", base_url, path, body)

    async def _json(self, method: str, base_url: str, path: str, body: bytes) -> dict[str, Any]:
        deadline = trio.current_time() + self._timeouts.metadata
        request = self._request(method, base_url, path, body)
        async with self._answer(request, deadline, base_url) as response:
            reply = Reply(response, deadline, 0, self._line_limit)
            answer = await reply.read(JSON_LIMIT)
        try:
            parsed = orjson.loads(answer)
        except orjson.JSONDecodeError:
            # Its text quotes what it could not read: it does not travel along.
            raise UpstreamError from None
        if not isinstance(parsed, dict):
            raise UpstreamError
        return parsed

    @contextlib.asynccontextmanager
    async def _answer(
        self, request: httpx.Request, deadline: float, base_url: str
    ) -> AsyncIterator[httpx.Response]:
        """Yield a 200 answer, its body unread; raise for any other status."""
        response = await self._dispatch(request, deadline, base_url)
        try:
            if response.status_code != 200:
                raise await _refusal(response, deadline)  # noqa: TRY301 - it is closed below
            yield response
        except BaseException:
            with trio.CancelScope(shield=True, deadline=trio.current_time() + CLOSE_LIMIT):
                await response.aclose()
            raise
        await response.aclose()

    async def _dispatch(
        self, request: httpx.Request, deadline: float, base_url: str
    ) -> httpx.Response:
        try:
            with _limit(deadline), mapped_errors():
                response = await self._transport.handle_async_request(request)
                self._report(base_url, ok=True)
                return response
        except UpstreamError as error:
            if isinstance(error.__cause__, (httpx.ConnectError, httpx.ConnectTimeout)):
                self._report(base_url, ok=False)
            raise
        raise UpstreamTimeout

    def _request(self, method: str, base_url: str, path: str, body: bytes) -> httpx.Request:
        url = self._urls.get((base_url, path))
        if url is None:  # both are constants of the gateway: the cache is bounded
            url = self._urls[base_url, path] = httpx.URL(base_url + path)
        length = [(b"Content-Length", b"%d" % len(body))] if method == "POST" else []
        # All headers and the stream as given: httpx would take longer to work them out than the
        # rest of the call to upstream takes.
        return httpx.Request(
            method,
            url,
            headers=[(b"Host", url.netloc), *HEADERS, *length],
            stream=httpx.ByteStream(body),
            extensions=self._extensions,
        )


class Reply:
    """Upstream's open stream: iterate it for lines, or `read` it whole.

    A step yields every line that has arrived, as a non-empty list without the line breaks.
    The connection can be used again only if the iteration went to its end.
    """

    def __init__(
        self,
        response: httpx.Response,
        first_by: float,
        idle: float,
        line_limit: int,
        patience: Patience | None = None,
    ) -> None:
        """`first_by` is a trio time; an `idle` of 0 keeps to it for all of the body."""
        self.status = response.status_code
        self._response = response
        self._pieces = aiter(response.stream)  # type: ignore[arg-type]
        self._first_by = first_by
        self._idle = idle
        self._line_limit = line_limit
        self._patience = patience
        self._begun = b""
        self._tail: list[bytes] = []  # pieces of a line whose end has not come
        self._tail_size = 0
        self._waiting_for_first = True
        self._ended = False

    async def begin(self) -> None:
        """Await the first bytes of the body, so that a failure still has a status."""
        self._begun = await self._piece()

    async def read(self, limit: int) -> bytes:
        """Return the whole body; raises UpstreamError when it is longer than `limit` bytes."""
        self._waiting_for_first = self._idle == 0
        parts: list[bytes] = []
        size = 0
        while piece := await self._piece():
            parts.append(piece)
            size += len(piece)
            if size > limit:
                await self._refuse()
        return b"".join(parts)

    def __aiter__(self) -> Self:
        """Iterate over batches of lines."""
        return self

    async def __anext__(self) -> list[bytes]:
        """Return the lines that have arrived; raises UpstreamError or UpstreamTimeout."""
        while not self._ended:
            piece = await self._piece()
            if not piece:
                self._ended = True
                last = b"".join(self._tail)
                if last:
                    return [last]
                break
            lines = piece.split(b"\n")
            if self._tail_size + len(piece) > self._line_limit:
                await self._measure(lines)
            rest = lines.pop()
            if lines and self._tail:
                lines[0] = b"".join(self._tail) + lines[0]
                self._tail.clear()
                self._tail_size = 0
            if rest:
                self._tail.append(rest)
                self._tail_size += len(rest)
            if b"" in lines:
                lines = [line for line in lines if line]
            if lines:
                self._waiting_for_first = False
                return lines
        raise StopAsyncIteration

    async def _measure(self, lines: list[bytes]) -> None:
        if self._tail_size + len(lines[0]) > self._line_limit or any(
            len(line) > self._line_limit for line in lines
        ):
            await self._refuse()

    async def _refuse(self) -> None:
        await self._response.aclose()
        raise UpstreamError

    async def _piece(self) -> bytes:
        """Return the next bytes, b"" at the end, within the limit that holds now."""
        if self._begun:
            piece, self._begun = self._begun, b""
            return piece
        deadline = self._first_by
        if not self._waiting_for_first:
            if self._patience is not None:
                self._patience.allow(self._idle)
            else:
                deadline = trio.current_time() + self._idle
        with _limit(deadline), mapped_errors():
            async for piece in self._pieces:
                if piece:
                    return piece
            return b""
        raise UpstreamTimeout


def _limit(deadline: float) -> contextlib.AbstractContextManager[object]:
    return UNLIMITED if deadline == math.inf else trio.CancelScope(deadline=deadline)


def _unheard(_backend: str, /, *, ok: bool) -> None:
    """Nobody asked."""


async def _refusal(response: httpx.Response, deadline: float) -> GatewayError:
    words = b""
    if response.status_code == 400:
        with contextlib.suppress(UpstreamError):  # the status has said enough
            words = await Reply(response, deadline, 0, REFUSAL_LIMIT).read(REFUSAL_LIMIT)
    return refusal(response.status_code, words, response.headers.get("retry-after"))
