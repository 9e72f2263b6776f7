"""Sends one message to a receiver: no redirects, no proxies, and nothing kept of the answer."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, cast

import httpx
import trio

from trio_gateway.clients.transport import LeanTransport

if TYPE_CHECKING:
    from collections.abc import Mapping

LIMIT = 10.0  # seconds for all of it
BODY_LIMIT = 4096  # bytes of an answer that are read, and thrown away


class Undelivered(Exception):
    """Raised where no answer came; `reason` is one of a few fixed words, for people."""

    def __init__(self, reason: str) -> None:
        """Take a reason that holds nothing of the address, nor of what was sent."""
        self.reason = reason
        super().__init__(reason)


@dataclass(frozen=True, slots=True)
class Receipt:
    """What the receiver answered; `retry_after` is in seconds, None where it did not say."""

    status: int
    retry_after: float | None = None


class WebhookClient:
    """Each message has a connection of its own. Raises Undelivered."""

    def __init__(
        self, transport: httpx.AsyncBaseTransport | None = None, limit: float = LIMIT
    ) -> None:
        """`limit` is in seconds, from the look-up of the host to the end of the answer."""
        self._transport = transport or LeanTransport(max_idle=0)
        self._limit = limit

    async def post(self, url: str, headers: Mapping[str, str], body: bytes) -> Receipt:
        """POST the body as JSON; any status is an answer, a redirect too."""
        fixed = {
            "content-type": "application/json",
            "user-agent": "trio-gateway",
            "connection": "close",
        }
        receipt = None
        try:
            request = httpx.Request("POST", url, headers={**headers, **fixed}, content=body)
            with trio.move_on_after(self._limit):
                response = await self._transport.handle_async_request(request)
                receipt = Receipt(response.status_code, _retry_after(response))
                # Its status is the answer, whatever becomes of the rest.
                with contextlib.suppress(httpx.HTTPError, OSError, trio.BrokenResourceError):
                    await _read_some(response)
        except httpx.TimeoutException as error:
            raise Undelivered("no answer in time") from error
        except httpx.ConnectError as error:
            handshake = isinstance(error.__cause__, trio.BrokenResourceError)
            raise Undelivered("no trusted connection" if handshake else "no connection") from error
        except (
            httpx.HTTPError,
            httpx.InvalidURL,
            OSError,
            UnicodeError,
            trio.BrokenResourceError,
        ) as error:
            raise Undelivered("no proper answer") from error
        if receipt is None:
            raise Undelivered("no answer in time")
        return receipt


async def _read_some(response: httpx.Response) -> None:
    """Let a receiver finish a short answer; one that is long is cut off."""
    seen = 0
    try:
        # Not `aiter_raw`, a generator, which would be left suspended.
        async for piece in cast("httpx.AsyncByteStream", response.stream):
            seen += len(piece)
            if seen > BODY_LIMIT:
                return
    finally:
        await response.aclose()


def _retry_after(response: httpx.Response) -> float | None:
    value = response.headers.get("retry-after", "")
    if value.isascii() and value.isdigit() and len(value) < 10:
        return float(value)
    try:
        at = parsedate_to_datetime(value)
    except (ValueError, OverflowError):
        return None
    at = at if at.tzinfo else at.replace(tzinfo=UTC)
    return max(0.0, (at - datetime.now(UTC)).total_seconds())
