"""Where a body is read: a short one at once, a long one beside the loop that serves all calls.

A long one takes as long as many calls do, and while the loop stands still no lease is renewed and
no store is heard. The interpreter is shared, so that a thread does not make it cheaper; but the
loop has its turns in between.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

import trio

from trio_gateway.core.errors import GatewayError

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")

SHORT = 128 * 1024  # bytes that are read sooner than a thread is awake
AT_ONCE = 1  # more would be no faster, and take more memory and more of the loop's turns
SEATS = trio.CapacityLimiter(AT_ONCE)


async def read_apart(read: Callable[[bytes], T], body: bytes) -> T:
    """Return `read(body)`, or raise the GatewayError that it raises, out of a thread.

    To wait for it can be cancelled until it has begun; then it ends first.
    """
    found = await trio.to_thread.run_sync(_tried, read, body, limiter=SEATS)
    if isinstance(found, GatewayError):
        try:
            raise found
        finally:
            del found  # see `carry`
    return found


def _tried(read: Callable[[bytes], T], body: bytes) -> T | GatewayError:
    try:
        return read(body)
    except GatewayError as error:
        # Where it was raised nobody asks, and its frames lead to the thread's, which has it too:
        # all of that, and the body, would stay until a full collection.
        error.__context__ = None
        return error.with_traceback(None)
