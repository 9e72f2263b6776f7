"""One request to an OpenID provider: bounded, without redirects, its failures in our words."""

from __future__ import annotations

from contextlib import aclosing, contextmanager
from typing import TYPE_CHECKING, Any, cast

import httpx
import orjson
import trio

from trio_gateway.clients.transport import LeanTransport
from trio_gateway.core.openid import CodeRefused, ProviderUnavailable

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Iterator, Mapping

LIMIT = 10.0  # seconds for one request, all of it
BODY_LIMIT = 256 * 1024  # bytes of any answer
HEADERS = {
    "accept": "application/json",
    "accept-encoding": "identity",
    "user-agent": "trio-gateway",
}


class Fetcher:
    """Asks for JSON objects. Errors raised: ProviderUnavailable, and by `post` CodeRefused."""

    def __init__(
        self, transport: httpx.AsyncBaseTransport | None = None, limit: float = LIMIT
    ) -> None:
        """`limit` is how many seconds one request may take."""
        self._transport = transport or LeanTransport(max_idle=2)
        self._limit = limit

    async def aclose(self) -> None:
        """Close the connections."""
        await self._transport.aclose()

    async def get(self, url: str) -> dict[str, Any]:
        """Return what stands at a URL."""
        with _renamed():
            status, text = await self._send(httpx.Request("GET", url, headers=HEADERS))
        return _object(status, text)

    async def post(self, url: str, headers: Mapping[str, str], body: bytes) -> dict[str, Any]:
        """Return the answer to a form."""
        kind = {"content-type": "application/x-www-form-urlencoded"}
        with _renamed():
            all_headers = {**HEADERS, **kind, **headers}
            request = httpx.Request("POST", url, headers=all_headers, content=body)
            status, text = await self._send(request)
        error = _error(text)
        if status == 400 and error == "invalid_grant":
            raise CodeRefused
        if status == 401 or error in {"invalid_client", "unauthorized_client"}:
            raise ProviderUnavailable("does not accept the client id and the client secret")
        return _object(status, text)

    async def _send(self, request: httpx.Request) -> tuple[int, bytes]:
        with trio.fail_after(self._limit):
            response = await self._transport.handle_async_request(request)
            try:
                return response.status_code, await _body(response)
            finally:
                await response.aclose()


async def _body(response: httpx.Response) -> bytes:
    pieces, size = [], 0
    async with aclosing(cast("AsyncGenerator[bytes]", response.aiter_raw())) as body:
        async for piece in body:
            size += len(piece)
            if size > BODY_LIMIT:
                raise ProviderUnavailable("gave an answer that is too long")
            pieces.append(piece)
    return b"".join(pieces)


@contextmanager
def _renamed() -> Iterator[None]:
    try:
        yield
    except (trio.TooSlowError, httpx.TimeoutException) as error:
        raise ProviderUnavailable("did not answer in time") from error
    except (httpx.ConnectError, OSError) as error:
        raise ProviderUnavailable("cannot be reached, or not by a trusted connection") from error
    except (httpx.HTTPError, httpx.InvalidURL, UnicodeError, trio.BrokenResourceError) as error:
        raise ProviderUnavailable("gave no proper answer") from error


def _error(text: bytes) -> str | None:
    try:
        error = orjson.loads(text)["error"]
    except (ValueError, TypeError, KeyError):
        return None
    return error if isinstance(error, str) else None


def _object(status: int, text: bytes) -> dict[str, Any]:
    if status in range(300, 400):
        raise ProviderUnavailable("redirects where it should answer")
    if status != 200:
        raise ProviderUnavailable(f"answered with status {status}")
    try:
        found = orjson.loads(text)
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise ProviderUnavailable("gave an answer that is no JSON object")
    return found
