"""The numbers of the overview, and of the live events that keep them fresh."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from trio_gateway.core.errors import GatewayError
from trio_gateway.web.admin.dashboard import words

if TYPE_CHECKING:
    from trio_gateway.web.admin.office import Office

DAY = 24  # hours


async def pulse(office: Office) -> dict[str, Any]:
    """Return texts by the names that pages give to their places: what goes on now, and no sums.

    What cannot be read is left out, and named in `missing`.
    """
    try:
        return {**await traffic(office), "missing": []}
    except GatewayError:
        return {"missing": ["Redis"]}


async def traffic(office: Office) -> dict[str, str]:
    """Return what goes on now, over all workers. Raises StoreUnavailable."""
    workers = await office.workers.listing()
    return {
        "calls": words.number(await office.calls.count()),
        "in_flight": words.number(sum(worker["in_flight"] for worker in workers)),
        "waiting": words.number(sum(worker["waiting"] for worker in workers)),
        "workers": words.number(len(workers)),
        "unsettled": words.number(sum(worker["unsettled"] for worker in workers)),
    }


def spoken(totals: dict[str, Any]) -> dict[str, str]:
    """Return the sums of a span as texts."""
    requests, failures = totals["requests"], totals["failures"]
    rate = failures * 100 / requests if requests else 0
    return {
        "requests": words.number(requests),
        "tokens": words.number(totals["charged_tokens"]),
        "tokens_parts": (
            f"{words.short(totals['prompt_tokens'])} in,"
            f" {words.short(totals['completion_tokens'])} out"
        ),
        "failures": words.number(failures),
        "failure_rate": f"{rate:.2g}{words.THIN}% of requests",
        "ttft_p50": words.milliseconds(totals["ttft_p50_ms"]),
        "ttft_p95": words.milliseconds(totals["ttft_p95_ms"]),
    }
