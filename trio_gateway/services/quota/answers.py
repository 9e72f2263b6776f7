"""What the reserve script answers, in the words of callers: standings and refusals."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from trio_gateway.core.domain import Period, Standing, Window
from trio_gateway.core.errors import BudgetExhausted, RateLimited

if TYPE_CHECKING:
    from collections.abc import Sequence

    from trio_gateway.core.domain import Principal

REFUSALS = {
    "budget": "The token budget is exhausted.",
    "prompt": "The prompt alone exceeds the tokens-per-minute limit.",
    "requests": "Requests-per-minute limit reached.",
    "tokens": "Tokens-per-minute limit reached.",
    "in_flight": "Too many calls of this tenant are in flight.",
}


def standing_of(principal: Principal, numbers: Sequence[int], now_us: int) -> Standing:
    """Read the nine numbers of an answer: limit, remaining and reset of three windows."""

    def window(at: int) -> Window | None:
        limit, remaining, reset = numbers[at : at + 3]
        return None if limit < 0 else Window(limit, remaining, reset / 1_000_000)

    budget = None
    if numbers[6] >= 0:
        owner = principal.tenant if numbers[8] == 1 else principal.key
        reset = until_reset(owner.limits.budget_period, now_us)
        budget = Window(numbers[6], numbers[7], reset)
    return Standing(window(0), window(3), budget)


def until_reset(period: Period, now_us: int) -> float | None:
    """Return the seconds until a budget of this period starts anew; None for `total`."""
    now = datetime.fromtimestamp(now_us / 1_000_000, UTC)
    midnight = now.replace(hour=0, minute=0, second=0, microsecond=0)
    if period is Period.DAY:
        return (midnight + timedelta(days=1) - now).total_seconds()
    if period is Period.MONTH:
        first = (midnight.replace(day=1) + timedelta(days=32)).replace(day=1)
        return (first - now).total_seconds()
    return None


def refusal_of(principal: Principal, reply: Any) -> RateLimited | BudgetExhausted:
    """Put the script's `no` into words, with what is left and when to come again."""
    reason, wait = reply[1].decode(), reply[3]
    now_us = int(datetime.now(UTC).timestamp() * 1_000_000)
    standing = standing_of(principal, reply[4:13], now_us)
    message = REFUSALS[reason]
    if reason == "budget":
        # The scope that refused says when it starts anew, be it the tighter one or not.
        owner = principal.tenant if reply[2] == b"t" else principal.key
        wait_s = until_reset(owner.limits.budget_period, now_us)
        return BudgetExhausted(message, retry_after=wait_s, should_retry=False, standing=standing)
    if wait < 0:  # no wait would help
        return RateLimited(message, should_retry=False, standing=standing)
    return RateLimited(message, retry_after=wait / 1_000_000, standing=standing)
