"""The numbers of the overview, and of the live events that keep them fresh."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import trio

from trio_gateway.core.errors import GatewayError
from trio_gateway.services.usage import Usage, last_hours
from trio_gateway.web.admin.dashboard import words

if TYPE_CHECKING:
    from trio_gateway.web.admin.office import Office

DAY = 24  # hours
SUMS_EVERY = 5.0  # seconds that sums are kept for live events


class Pulse:
    """Polls for the live events. Whatever cannot be read is left out, and named in `missing`."""

    def __init__(self, office: Office) -> None:
        """Nothing is read yet."""
        self._office = office
        self._sums: dict[str, Any] = {}
        self._read_at = float("-inf")

    async def __call__(self) -> dict[str, Any]:
        """Return texts by the names that pages give to their places."""
        missing, numbers = list[str](), dict[str, Any]()
        try:
            numbers |= await traffic(self._office)
        except GatewayError:
            missing.append("Redis")
        try:
            if trio.current_time() - self._read_at >= SUMS_EVERY:
                self._sums = spoken(await Usage(self._office.postgres).totals(*last_hours(DAY)))
                self._read_at = trio.current_time()
            numbers |= self._sums
        except GatewayError:
            missing.append("PostgreSQL")
        return {**numbers, "missing": missing}


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
