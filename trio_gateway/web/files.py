"""/v1/files: upload, list, retrieve, delete, and the contents."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import structlog
import trio
from quart import Response

from trio_gateway.clients.blobs import BlobMissing
from trio_gateway.core.errors import ClientStalled, GatewayError, StoreUnavailable
from trio_gateway.dialects import openai_files
from trio_gateway.web.inference import entered
from trio_gateway.web.replies import JSON
from trio_gateway.web.routes import id_in
from trio_gateway.web.upload import take_in

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from trio_gateway.core.batches import StoredFile
    from trio_gateway.services.live import Leash
    from trio_gateway.web.connection import Request
    from trio_gateway.web.gateway import Gateway

    Poured = trio.MemoryReceiveChannel[bytes | GatewayError]

log = structlog.get_logger()

SLICE = 64 * 1024  # bytes that a client must take within the write-stall limit
READ_LIMIT = 120.0  # seconds for the store to give a piece


async def collection() -> Response:
    """List the tenant's files, or take one in."""
    gateway, asked, leash = await entered()
    if asked.feed is not None:
        try:
            file = await take_in(gateway, asked, leash, asked.feed)
        finally:
            asked.feed.close()
        gateway.observer.metrics.moved_bytes("up", file.bytes)
        return _json(openai_files.render(file))
    page = openai_files.parse_page(asked.scope["query_string"])
    with leash.cover():
        files, has_more = await gateway.files.listing(
            leash.principal.tenant.id, page.purpose, page.limit, page.order, page.after
        )
    return _json(openai_files.render_list(files, has_more=has_more))


async def one() -> Response:
    """Show or delete one file."""
    gateway, asked, leash = await entered()
    tenant_id, file_id = leash.principal.tenant.id, id_in(asked.raw_path)
    with leash.cover():
        if asked.method == "DELETE":
            await gateway.files.remove(tenant_id, file_id)
            return _json(openai_files.render_deleted(file_id))
        file = await gateway.files.find(tenant_id, file_id)
    return _json(openai_files.render(file))


async def content() -> Response:
    """Send what a file holds, byte for byte."""
    gateway, asked, leash = await entered()
    with leash.cover():
        file = await gateway.files.find(leash.principal.tenant.id, id_in(asked.raw_path))
    send, receive = trio.open_memory_channel[bytes | GatewayError](0)
    asked.nursery.start_soon(_pour, gateway, asked, leash, file, send)
    first = await receive.receive()
    if isinstance(first, GatewayError):
        try:
            raise first
        finally:
            del first  # see `carry`
    headers = {
        "content-length": str(file.bytes),
        "content-disposition": openai_files.disposition(file.filename),
        "x-content-type-options": "nosniff",
    }
    return Response(_poured(first, receive), 200, headers, content_type="application/octet-stream")


async def _poured(first: bytes, receive: Poured) -> AsyncIterator[bytes]:
    piece = first
    while piece:
        yield piece
        piece = cast("bytes", await receive.receive())  # an error comes first or not at all


async def _pour(
    gateway: Gateway,
    asked: Request,
    leash: Leash,
    file: StoredFile,
    send: trio.MemorySendChannel[bytes | GatewayError],
) -> None:
    """Hand the contents on, b"" at their end.

    An error that comes first is sent. A later one cannot be told any more: the connection is
    cut, so that nobody takes half of a file for all of it.
    """
    begun = False
    try:
        with leash.cover() as cover:
            async with gateway.blobs.reader(file.blob, 0, file.bytes) as reader:
                piece = b"-"
                while piece:
                    cover.allow(READ_LIMIT, StoreUnavailable)
                    piece = await reader.read()
                    for at in range(0, len(piece) or 1, SLICE):
                        cover.allow(gateway.settings.write_stall_timeout, ClientStalled)
                        await send.send(piece[at : at + SLICE])
                        begun = True
    except (GatewayError, BlobMissing) as error:
        failed = error
    else:
        gateway.observer.metrics.moved_bytes("down", file.bytes)
        return
    if type(failed) is type(leash.reason):
        log.info("download_cut", file_id=file.id, reason=type(failed).__name__)
    else:
        log.warning("download_failed", file_id=file.id, error=type(failed).__name__)
    if begun:
        asked.reset_client()
        asked.nursery.cancel_scope.cancel()
    else:
        await send.send(failed if isinstance(failed, GatewayError) else StoreUnavailable())
    del failed  # see `carry`


def _json(body: bytes) -> Response:
    return Response(body, 200, content_type=JSON)
