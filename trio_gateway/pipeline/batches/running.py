"""One line of a batch, run as a live call is: the same gate, the same account, the same leash."""

from __future__ import annotations

import random
import time
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, cast

import orjson
import structlog
import trio

from trio_gateway.core.causes import first_of
from trio_gateway.core.errors import (
    BudgetExhausted,
    CallCut,
    CallerError,
    GatewayError,
    ModelNotFound,
    Overloaded,
    RateLimited,
    ShuttingDown,
    StoreUnavailable,
    Unreachable,
    UpstreamTimeout,
    UpstreamUnavailable,
)
from trio_gateway.dialects.batch_output import LOST, failure_line, result_line, unrun_line
from trio_gateway.dialects.strict_json import parse_object
from trio_gateway.dialects.table import INFERENCE
from trio_gateway.pipeline.admission import Errand, begin, new_request_id
from trio_gateway.pipeline.batches.work import Later
from trio_gateway.pipeline.exchange import Begun, Item, carry
from trio_gateway.pipeline.reading import SHORT, read_apart
from trio_gateway.services.batches.lines import Result

if TYPE_CHECKING:
    from collections.abc import Callable

    from trio_gateway.core.domain import Call, Chunk
    from trio_gateway.dialects.table import Dialect, Rendering
    from trio_gateway.pipeline.batches.work import Bench, Flight
    from trio_gateway.services.live import Leash

log = structlog.get_logger()

KNOWN = frozenset({"custom_id", "method", "url", "body"})
PROBE = 5.0  # seconds between two looks whether a budget has returned
AWAY = 2.0  # seconds until a backend that cannot be reached, or has no room, is tried again
STORE = 1.0  # seconds until a store that did not answer is asked again
BACKOFF_FIRST = 1.0  # seconds; doubled with each failed attempt
BACKOFF_MOST = 60.0
BROKEN = 2  # attempts at a line whose answers break
AHEAD = 16  # items that an answer may be ahead of its rendering


async def run_line(bench: Bench, flight: Flight) -> Result | Later:
    """Run a line to its result, or say when it has to be run again."""
    request_id = new_request_id()
    timeline = begin()
    timeline.batch = True
    if flight.text is None:
        return _result(flight, request_id, unrun_line(flight.line.custom_id, request_id, LOST))
    try:
        call, rendering = await _parsed(flight, request_id)
        timeline.received = timeline.parsed = trio.current_time()
        principal = await bench.tenants.recall(flight.claim.key_id)
        with bench.live.hold(
            principal, request_id
        ) as leash:  # in the same step: it can be cut from now on
            flight.leash = leash
            timeline.authenticated = trio.current_time()
            errand = Errand(
                request_id, principal, call, "batch", flight.claim.batch_id, timeline=timeline
            )
            done = await _answered(bench, leash, errand, rendering, flight.landed)
        body = rendering.body()
    except Exception as error:  # noqa: BLE001 - `_known` logs what is not ours
        return _unanswered(bench, flight, request_id, _known(error, flight))
    text = result_line(flight.line.custom_id, request_id, body)
    return replace(
        _result(flight, request_id, text),
        succeeded=True,
        input_tokens=max(done.prompt_tokens or 0, 0),
        output_tokens=max(done.output_tokens or 0, 0),
    )


def _unanswered(
    bench: Bench, flight: Flight, request_id: str, error: GatewayError
) -> Result | Later:
    text = failure_line(flight.line.custom_id, request_id, error)
    return _later(bench, flight, error) or _result(flight, request_id, text)


def _known(error: Exception, flight: Flight) -> GatewayError:
    """Name a failure; one of this code's own must not end the other lines."""
    first = first_of(error)
    if isinstance(first, GatewayError):
        return first
    log.error("batch_line_broke", batch_id=flight.claim.batch_id, exc_info=error)
    return GatewayError()


def _result(flight: Flight, request_id: str, text: bytes) -> Result:
    return Result(flight.claim, flight.line, succeeded=False, request_id=request_id, text=text)


async def _parsed(flight: Flight, request_id: str) -> tuple[Call, Rendering]:
    """Read the body as its endpoint does; raises InvalidCall."""
    text, flight.text = flight.text or b"", b""  # long ones would be kept three times over
    dialect = INFERENCE[flight.claim.endpoint]
    read = partial(_parse, dialect)
    call = read(text) if len(text) <= SHORT else await read_apart(read, text)
    return call, dialect.render(call, request_id=request_id, created=time.time())


def _parse(dialect: Dialect, text: bytes) -> Call:
    body = parse_object(text, KNOWN).get("body")
    return replace(cast("Call", dialect.parse(orjson.dumps(body))), stream=False)


async def _answered(
    bench: Bench,
    leash: Leash,
    errand: Errand,
    rendering: Rendering,
    landed: Callable[[], object],
) -> Chunk:
    """Carry the call and render what comes; return the last chunk, or raise what broke it.

    `landed` is told once upstream is done; the account is settled after that.
    """
    send, receive = trio.open_memory_channel[Item](AHEAD)
    last: Chunk | None = None
    async with trio.open_nursery() as nursery:
        nursery.start_soon(carry, bench.gate, leash, errand, send)
        async for item in receive:
            if isinstance(item, GatewayError):
                failure = item
                break
            for last in item.chunks if isinstance(item, Begun) else item:
                rendering.absorb(last)
        else:
            failure = None
        landed()
    if failure is not None:
        try:
            raise failure
        finally:
            del failure, item  # see `carry`
    if last is None:
        raise GatewayError
    return last


def _later(bench: Bench, flight: Flight, error: GatewayError) -> Later | None:
    """Return when the line is to be run again; None where the error is its result."""
    if isinstance(error, ShuttingDown):
        return Later()
    if isinstance(error, StoreUnavailable):
        return Later(rest=STORE)
    # Nothing was sent, or nothing will be known of the model for a while: no line is to blame.
    if isinstance(error, (Overloaded, Unreachable)) or _may_return(bench, flight, error):
        return Later(rest=AWAY)
    if isinstance(error, BudgetExhausted):
        # Longer than the batch, so that others of its lines, which may cost less, come first.
        return Later(3 * PROBE, rest=PROBE, paused=error.code)
    if isinstance(error, RateLimited) and error.should_retry is not False:
        return Later(rest=max(error.retry_after or 0, STORE))
    final = isinstance(error, (CallerError, CallCut))
    if final or flight.line.attempts + 1 >= _most(bench, error):
        return None
    backoff = min(BACKOFF_MOST, BACKOFF_FIRST * 2**flight.line.attempts)
    backoff = max(backoff, error.retry_after or 0) * random.uniform(0.8, 1.2)  # noqa: S311
    rest = STORE if isinstance(error, UpstreamUnavailable) else 0
    return Later(backoff, failed=True, rest=rest)


def _most(bench: Bench, error: GatewayError) -> int:
    """Return how many attempts a failure is worth: one that may be the line's own fault, two.

    Each attempt is charged for what upstream did for it.
    """
    passing = isinstance(error, (UpstreamUnavailable, UpstreamTimeout))
    return bench.attempts if passing else min(BROKEN, bench.attempts)


def _may_return(bench: Bench, flight: Flight, error: GatewayError) -> bool:
    """Whether the model is missing only because a backend has not been heard of lately."""
    catalog = bench.gate.catalog
    missing = isinstance(error, ModelNotFound) and catalog.find(flight.claim.model) is None
    return missing and not catalog.complete
