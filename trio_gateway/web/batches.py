"""/v1/batches: create, list, retrieve, cancel."""

from __future__ import annotations

from typing import TYPE_CHECKING

from quart import Response

from trio_gateway.core.errors import CallTooLarge
from trio_gateway.dialects import openai_batch_create, openai_batches
from trio_gateway.web.body import read_body
from trio_gateway.web.inference import entered
from trio_gateway.web.replies import JSON
from trio_gateway.web.routes import id_in

if TYPE_CHECKING:
    from trio_gateway.services.live import Leash
    from trio_gateway.web.connection import Request
    from trio_gateway.web.gateway import Gateway

MOST_BODY = 1024 * 1024  # bytes
REPLAYED = {"idempotent-replayed": "true"}


async def collection() -> Response:
    """List the tenant's batches, or create one."""
    gateway, asked, leash = await entered()
    with leash.cover():
        if asked.method == "POST":
            return await _create(gateway, asked, leash)
        page = openai_batches.parse_page(asked.scope["query_string"])
        tenant_id = leash.principal.tenant.id
        batches, has_more = await gateway.batches.listing(tenant_id, page.limit, page.after)
    return _json(openai_batches.render_list(batches, has_more=has_more))


async def one() -> Response:
    """Show one batch."""
    gateway, asked, leash = await entered()
    batch_id = id_in(asked.raw_path)
    with leash.cover():
        batch = await gateway.batches.find(leash.principal.tenant.id, batch_id)
    return _json(openai_batches.render(batch))


async def cancel() -> Response:
    """Cancel one batch; what its body holds does not matter."""
    gateway, asked, leash = await entered()
    batch_id = id_in(asked.raw_path)
    with leash.cover():
        batch = await gateway.batches.cancel(leash.principal.tenant.id, batch_id)
    return _json(openai_batches.render(batch))


async def _create(gateway: Gateway, asked: Request, leash: Leash) -> Response:
    key = openai_batch_create.header_key(asked.scope["headers"])
    wanted = openai_batch_create.parse_create(await _body(asked), key)
    batch, replayed = await gateway.batches.create(leash.principal, wanted)
    return _json(openai_batches.render(batch), REPLAYED if replayed else None)


async def _body(asked: Request) -> bytes:
    """Return the body; what may be said of a batch is short."""
    if (asked.content_length or 0) > MOST_BODY:
        raise CallTooLarge
    body = await read_body(asked)
    if len(body) > MOST_BODY:
        raise CallTooLarge
    return body


def _json(body: bytes, headers: dict[str, str] | None = None) -> Response:
    return Response(body, 200, headers, content_type=JSON)
