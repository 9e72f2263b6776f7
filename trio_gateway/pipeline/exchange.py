"""The exchange: one call from admission to settlement, as one task.

Until `started`, an error is raised to the handler and becomes an HTTP status; after it the
status is gone, and the error travels as the last item of the body. When the client hangs up,
the request's nursery cancels this task wherever it stands: leaving `open` closes the socket to
upstream, which is what stops the GPU, and leaving `admit` settles the account. Nothing here
ever catches Cancelled.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import structlog
import trio

from trio_gateway.core.domain import Chunk, Outcome
from trio_gateway.core.errors import (
    ClientStalled,
    GatewayError,
    StoreUnavailable,
    UpstreamError,
    UpstreamTimeout,
)
from trio_gateway.dialects.ollama import encode_call, parse_chunk
from trio_gateway.pipeline.admission import Admission, Errand, admit

if TYPE_CHECKING:
    from collections.abc import Callable

    from trio_gateway.clients.upstream import Reply
    from trio_gateway.core.domain import Call
    from trio_gateway.pipeline.gate import Gate, Route
    from trio_gateway.services.live import Leash

log = structlog.get_logger()

FAREWELL_LIMIT = 2.0  # seconds for the client to take the last word
TRAILER_LIMIT = 0.5  # seconds for upstream to end its body after the last object
EMBEDDINGS_LIMIT = 64 * 1024 * 1024  # bytes of one embeddings answer

Item = list[Chunk] | GatewayError
Body = trio.MemoryReceiveChannel[Item]
Started = tuple[Admission, Body]


async def carry(
    gate: Gate,
    leash: Leash,
    errand: Errand,
    task_status: trio.TaskStatus[Started] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Take one call from admission to settlement.

    Started with the admission and a channel of chunk batches; the last item is a GatewayError
    where the call broke. Raises whatever `admit` and `open` raise, and the leash's reason.
    Once started it raises nothing but ClientStalled, where nobody took the last item: the
    channel's end must then not be taken for the answer's.
    """
    route = gate.authorize(errand.principal, errand.call.model)
    deadline = trio.current_time() + gate.rules.call_timeout
    errand = replace(errand, call=_permitted(errand.call, route), deadline=deadline)
    async with admit(gate, leash, errand, route) as admission:
        admission.hold.swept = lambda: leash.cut(StoreUnavailable())
        heard = await _exchange(gate, leash, admission, task_status)
    if not heard:
        raise ClientStalled


async def _exchange(
    gate: Gate, leash: Leash, admission: Admission, task_status: trio.TaskStatus[Started]
) -> bool:
    """Relay, then say how it ended; return whether somebody heard it."""
    send, receive = trio.open_memory_channel[Item](0)
    with send:
        # Upstream is closed by now: only our own word waits for a slow client.
        error = await _answer(
            gate, leash, admission, send, lambda: task_status.started((admission, receive))
        )
        if error is None:
            return True
        if not isinstance(error, ClientStalled):
            with trio.move_on_after(FAREWELL_LIMIT):
                await send.send(error)
                return True
    return False


async def _answer(
    gate: Gate,
    leash: Leash,
    admission: Admission,
    send: trio.MemorySendChannel[Item],
    begin: Callable[[], None],
) -> GatewayError | None:
    """Open upstream and relay to the end; whatever goes wrong after `begin` is returned."""
    call, deadline = admission.errand.call, admission.errand.deadline
    with leash.cover(deadline) as opening:
        async with gate.upstream.open(
            admission.backend, call.upstream, _encode(gate, admission)
        ) as reply:
            batches = _Batches(reply, call)
            first = await batches.receive()
            # A cut that came together with the first bytes still has a status of its own.
            await trio.lowlevel.checkpoint_if_cancelled()
            admission.answered()
            opening.release()
            begin()
            try:
                with leash.cover(deadline) as relaying:
                    await _relay(gate, admission, first, batches, send)
                relaying.fail_if_late()
            except Exception as error:  # noqa: BLE001 - `_farewell` logs what is not ours
                admission.fail(error)
                return _farewell(error)
            if admission.outcome is Outcome.COMPLETED:
                send.close()
                await _read_out(reply)
            return None
    raise UpstreamTimeout  # its own deadline passed before the call had begun to answer


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
        if self._broken is not None:
            raise self._broken
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
    gate: Gate,
    admission: Admission,
    batch: list[Chunk],
    batches: _Batches,
    send: trio.MemorySendChannel[Item],
) -> None:
    """Meter and hand on every batch; ends with the done chunk, or at the ceiling."""
    while True:
        _fail_if_stale(gate, admission)
        for at, chunk in enumerate(batch):
            if admission.meter(chunk):
                admission.finish(Outcome.CUT)
                await _send(gate, send, [*batch[:at], _cut_short(chunk, admission)])
                return
            if chunk.done:
                admission.finish(Outcome.COMPLETED)
                await _send(gate, send, batch[: at + 1])
                return
        await _send(gate, send, batch)
        batch = await batches.receive()


async def _send(gate: Gate, send: trio.MemorySendChannel[Item], batch: list[Chunk]) -> None:
    try:
        send.send_nowait(batch)
    except trio.WouldBlock:
        with trio.move_on_after(gate.rules.write_stall):
            await send.send(batch)
            return
        raise ClientStalled from None


async def _read_out(reply: Reply) -> None:
    """Read to the end of the body, so that the connection can be used again."""
    with trio.move_on_after(TRAILER_LIMIT), suppress(GatewayError):
        await anext(reply, None)


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


def _farewell(error: Exception) -> GatewayError:
    if isinstance(error, GatewayError):
        return error
    log.error("exchange_failed", exc_info=error)
    return GatewayError()
