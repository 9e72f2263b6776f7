"""What a Prometheus scrapes: every process of this installation, and what the stores hold."""

from __future__ import annotations

from quart import Blueprint, Response

from trio_gateway.services.metrics import exposition
from trio_gateway.web.admin.office import office

blueprint = Blueprint("metrics", __name__)


async def scrape() -> tuple[bytes, str]:
    """Return the text and its content type."""
    here = office()
    return await exposition.scrape(here.metrics, here.postgres)


@blueprint.get("/metrics")
async def metrics() -> Response:
    """Answer a scrape; `guard` has proved who asks."""
    text, content_type = await scrape()
    return Response(text, 200, content_type=content_type)
