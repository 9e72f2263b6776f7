"""The exchange: one call from admission to settlement, as one task.

The handler learns everything through one channel: an error that comes first becomes an HTTP
status, a later one ends the body. When the client hangs up, the request's nursery cancels this
task wherever it stands: leaving `open` closes the socket to upstream, which is what stops the
GPU, and leaving `admit` settles the account. Nothing here ever catches Cancelled.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import structlog
import trio

from trio_gateway.core.domain import Chunk, Outcome
from trio_gateway.core.errors import (
    ClientStalled,
    GatewayError,
    StoreUnavailable,
    UpstreamError,
)
from trio_gateway.dialects.ollama import encode_call, parse_chunk
from trio_gateway.pipeline.admission import Admission, Errand, admit

if TYPE_CHECKING:
    from trio_gateway.clients.upstream import Reply
    from trio_gateway.core.domain import Call, Standing
    from trio_gateway.core.timeline import Timeline
    from trio_gateway.pipeline.gate import Gate, Route
    from trio_gateway.services.live import Cover, Leash

log = structlog.get_logger()

FAREWELL_LIMIT = 2.0  # seconds for the client to take the last word
TRAILER_LIMIT = 0.5  # seconds for upstream to end its body after the last object
EMBEDDINGS_LIMIT = 64 * 1024 * 1024  # bytes of one embeddings answer


@dataclass(frozen=True, slots=True)
class Begun:
    """The first item of an answer that has begun: what the caller has left, and what has come."""

    standing: Standing
    chunks: list[Chunk]


Item = Begun | list[Chunk] | GatewayError
Heard = trio.MemorySendChannel[Item]
Body = trio.MemoryReceiveChannel[Item]


async def carry(gate: Gate, leash: Leash, errand: Errand, send: Heard) -> None:
    """Take one call from admission to settlement.

    Sends Begun once upstream answers, then batches of chunks. Whatever ends the call otherwise
    is sent as the last item, a GatewayError, be it the first one or not. Raises nothing but
    ClientStalled, where nobody took the last item: the channel's end must then not be taken
    for the answer's.

    The error leads through its traceback to the call and its body. Whoever raises it must not
    keep it in a variable as well: all of that would stay until a full collection comes by.
    """
    heard, timeline = True, errand.timeline
    timeline.carried, timeline.endpoint = True, errand.call.endpoint
    with send:
        try:
            route = gate.authorize(errand.principal, errand.call.model)
            timeline.model = errand.call.model  # a name of the catalog, then
            deadline = trio.current_time() + gate.rules.call_timeout
            errand = replace(errand, call=_permitted(errand.call, route), deadline=deadline)
            async with admit(gate, leash, errand, route) as admission:
                admission.hold.swept = lambda: leash.cut(StoreUnavailable())
                try:
                    await _exchange(gate, leash, admission, send)
                except Exception as error:  # noqa: BLE001 - `_farewell` logs what is not ours
                    admission.fail(error)
                    _note(timeline, error)
                    # Upstream is closed by now: only our own word waits for a slow client.
                    heard = await _farewell(send, error)
        except Exception as error:  # noqa: BLE001
            _note(timeline, error)
            heard = await _farewell(send, error)
        finally:
            gate.observe(timeline)
    if not heard:
        raise ClientStalled


def _note(timeline: Timeline, error: Exception) -> None:
    """Keep what an error is called; the error itself would keep the call."""
    known = error if isinstance(error, GatewayError) else GatewayError()
    timeline.error, timeline.status = known.code, known.status


async def _exchange(gate: Gate, leash: Leash, admission: Admission, send: Heard) -> None:
    """Open upstream and relay to the end; raises what broke the call, upstream closed."""
    call, timeline = admission.errand.call, admission.timeline
    try:
        with leash.cover(admission.errand.deadline) as cover:
            async with gate.upstream.open(
                admission.backend, call.upstream, _encode(gate, admission), cover
            ) as reply:
                await _relay(gate, admission, cover, _Batches(reply, call), send)
                timeline.last_byte = trio.current_time()
                if admission.outcome is Outcome.COMPLETED:
                    send.close()
                    # To the end of the body, so that the connection can be used again.
                    cover.release(TRAILER_LIMIT)
                    with suppress(GatewayError):
                        await anext(reply, None)
    finally:
        timeline.closed = trio.current_time()


def _encode(gate: Gate, admission: Admission) -> bytes:
    call, route = admission.errand.call, admission.route
    return encode_call(
        call,
        ceiling=admission.hold.ceiling if call.generates else None,
        load_options=route.load_options,
        keep_alive=gate.rules.keep_alive,
        model=route.upstream_name,
    )


class _Batches:
    """Upstream's reply as batches of chunks, each of all that have arrived.

    A line that breaks the reply does so at the next step, after the good ones before it.
    """

    __slots__ = ("_broken", "_call", "_reply")

    def __init__(self, reply: Reply, call: Call) -> None:
        self._reply = reply
        self._call = call
        self._broken: GatewayError | None = None

    async def receive(self) -> list[Chunk]:
        """Return the next chunks, at least one; an end without `done` is an UpstreamError."""
        broken, self._broken = self._broken, None
        if broken is not None:
            try:
                raise broken
            finally:
                del broken
        if not self._call.generates:
            return [parse_chunk(self._call, await self._reply.read(EMBEDDINGS_LIMIT))]
        batch: list[Chunk] = []
        try:
            for line in await anext(self._reply, None) or ():
                batch.append(parse_chunk(self._call, line))  # noqa: PERF401 - kept when one fails
        except UpstreamError as error:
            if not batch:
                raise
            self._broken = error
        if not batch:
            raise UpstreamError
        return batch


async def _relay(
    gate: Gate, admission: Admission, cover: Cover, batches: _Batches, send: Heard
) -> None:
    """Meter and hand on every batch; ends with the done chunk, or at the ceiling."""
    begun = False
    while True:
        batch = await batches.receive()
        _fail_if_stale(gate, admission)
        if not begun:
            # A cut that came together with the first bytes still has a status of its own.
            await trio.lowlevel.checkpoint_if_cancelled()
            admission.answered()
        for at, chunk in enumerate(batch):
            if admission.meter(chunk):
                batch = [*batch[:at], _cut_short(chunk, admission)]
                admission.finish(Outcome.CUT)
                break
            if chunk.done:
                batch = batch[: at + 1]
                admission.restate(chunk)
                admission.finish(Outcome.COMPLETED)
                break
        await _send(gate, cover, send, batch if begun else Begun(admission.standing, batch))
        begun = True
        if admission.outcome is not None:
            return


async def _send(gate: Gate, cover: Cover, send: Heard, item: Item) -> None:
    try:
        send.send_nowait(item)
    except trio.WouldBlock:
        cover.allow(gate.rules.write_stall, ClientStalled)
        await send.send(item)


async def _farewell(send: Heard, error: Exception) -> bool:
    """Send the last word; return whether somebody took it."""
    if isinstance(error, ClientStalled):
        return False
    if not isinstance(error, GatewayError):
        log.error("exchange_failed", exc_info=error)
        error = GatewayError()
    with trio.move_on_after(FAREWELL_LIMIT):
        await send.send(error)
        return True
    return False


def _fail_if_stale(gate: Gate, admission: Admission) -> None:
    """Cut a call whose hold may have been swept while this worker stood still."""
    reachable_since = gate.quota.reachable_since
    if reachable_since is None:
        return
    since = max(admission.hold.renewed_at, reachable_since)
    if trio.current_time() - since > gate.rules.lease:
        raise StoreUnavailable


def _cut_short(chunk: Chunk, admission: Admission) -> Chunk:
    """Make the honest last chunk of an answer that ran into its ceiling."""
    prompt, output = admission.count.estimate, admission.hold.ceiling
    raw: dict[str, Any] = {"created_at": chunk.raw.get("created_at")}
    if admission.errand.call.upstream == "/api/chat":
        raw["message"] = {"role": "assistant", "content": ""}
    else:
        raw["response"] = ""
    raw |= {"done": True, "done_reason": "length"}
    raw |= {"prompt_eval_count": prompt, "eval_count": output}
    return Chunk(
        raw=raw, done=True, done_reason="length", prompt_tokens=prompt, output_tokens=output
    )


def _permitted(call: Call, route: Route) -> Call:
    """Drop a wish to think that the model cannot grant, where the dialect calls it a wish."""
    wish = getattr(call.rendering, "think_is_wish", False)
    if wish and not route.thinks and "think" in call.body:
        body = {key: value for key, value in call.body.items() if key != "think"}
        return replace(call, body=body)
    return call
