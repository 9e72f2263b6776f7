"""What a Prometheus scrapes: every process of this installation, and what the stores hold."""

from __future__ import annotations

from trio_gateway.services.metrics import exposition
from trio_gateway.web.admin.office import office


async def scrape() -> tuple[bytes, str]:
    """Return the text and its content type."""
    here = office()
    return await exposition.scrape(here.metrics, here.postgres)
