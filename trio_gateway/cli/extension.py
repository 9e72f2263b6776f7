"""The options of `tenant extend` and `key extend`: a budget that is larger for a while."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any

import click

from trio_gateway.cli.options import Instant, Kind, Lifted, duration

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import datetime


class Until(Kind):
    """An instant, or a span that PostgreSQL counts from its own now."""

    name = "when"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> datetime | timedelta:
        """Return an aware instant or a span."""
        span = value if isinstance(value, timedelta) else duration(str(value))
        if span is not None:
            return span
        instant = Instant(1).convert(value, param, ctx)
        if isinstance(instant, Lifted):
            self.fail("an increase must end; update the budget instead.", param, ctx)
        return instant


def extension_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add `--tokens`, `--until` and `--end`; see `extension_of`."""
    for option in (
        click.option("--end", is_flag=True, help="End the increase now."),
        click.option("--until", type=Until(), help="2030-12-31T18:00, or for how long: 2d."),
        click.option("--tokens", type=click.IntRange(1), help="How many tokens more."),
    ):
        command = option(command)
    return command


def extension_of(tokens: int | None, until: Any, *, end: bool) -> tuple[int, Any] | None:
    """Return tokens and their end, None to end an increase; raises UsageError."""
    if end and (tokens is not None or until is not None):
        raise click.UsageError("--end excludes --tokens and --until")
    if end:
        return None
    if tokens is None or until is None:
        raise click.UsageError("an increase needs --tokens and --until; --end ends one")
    return tokens, until


def told(row: dict[str, Any], whose: str) -> str:
    """Say what the budget is now."""
    if row["budget_extra"] is None:
        return f"{whose} has its own budget again."
    return (
        f"{whose} may spend {row['effective_budget']} tokens"
        f" until {row['budget_extra_until']:%Y-%m-%d %H:%M:%SZ}."
    )
