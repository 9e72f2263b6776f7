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
TRAILER_LIMIT = 1.0  # seconds for upstream to end its body after the last object
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
    """
    route = gate.authorize(errand.principal, errand.call.model)
    errand = replace(errand, call=_permitted(errand.call, route))
    deadline = trio.current_time() + gate.rules.call_timeout
    with leash.cover(deadline) as opening:
        async with admit(gate, leash, errand, route) as admission:
            admission.hold.swept = lambda: leash.cut(StoreUnavailable())

            def begin(body: Body) -> None:
                opening.release()
                task_status.started((admission, body))

            await _exchange(gate, leash, admission, deadline, begin)
        return
    raise UpstreamTimeout  # its own deadline passed before the call had begun to answer


async def _exchange(
    gate: Gate,
    leash: Leash,
    admission: Admission,
    deadline: float,
    begin: Callable[[Body], None],
) -> None:
    """Open upstream and relay; whatever goes wrong after `begin` ends in the channel."""
    call = admission.errand.call
    async with gate.upstream.open(
        admission.backend, call.upstream, _encode(gate, admission)
    ) as reply:
        first = await _receive(reply, call)
        if first is None:
            raise UpstreamError
        admission.answered()
        send, receive = trio.open_memory_channel[Item](0)
        begin(receive)
        with send:
            try:
                with leash.cover(deadline):
                    await _relay(gate, admission, first, reply, send)
                    return
                raise UpstreamTimeout
            except Exception as error:  # noqa: BLE001 - `_farewell` logs what is not ours
                admission.fail(error)
                with trio.move_on_after(FAREWELL_LIMIT, shield=True):
                    await send.send(_farewell(error))


def _encode(gate: Gate, admission: Admission) -> bytes:
    call, route = admission.errand.call, admission.route
    return encode_call(
        call,
        ceiling=admission.hold.ceiling if call.generates else None,
        load_options=route.load_options,
        keep_alive=gate.rules.keep_alive,
        model=route.upstream_name,
    )


async def _receive(reply: Reply, call: Call) -> list[Chunk] | None:
    """Return the chunks that have arrived, all of them in one go; None at the end."""
    if not call.generates:
        return [parse_chunk(call, await reply.read(EMBEDDINGS_LIMIT))]
    lines = await anext(reply, None)
    return None if lines is None else [parse_chunk(call, line) for line in lines]


async def _relay(
    gate: Gate,
    admission: Admission,
    batch: list[Chunk],
    reply: Reply,
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
                send.close()
                await _read_out(reply)
                return
        await _send(gate, send, batch)
        following = await _receive(reply, admission.errand.call)
        if following is None:
            raise UpstreamError  # a clean end without `done` is no end
        batch = following


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
