"""`trio-gateway notices`: budgets of which 80 or 100 per cent were spent."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from trio_gateway.cli.door import work
from trio_gateway.cli.options import examples, given, target_options
from trio_gateway.cli.report import since_option
from trio_gateway.cli.show import note_if_cut, show_rows

if TYPE_CHECKING:
    from trio_gateway.cli.options import Target

COLUMNS = (
    "id",
    "at",
    "tenant",
    "key",
    "threshold",
    "period",
    "period_start",
    "budget",
    "spent",
    "deliveries",
)
CURRENT = tuple(column for column in COLUMNS if column != "deliveries")


@click.command(
    epilog=examples(
        "notices --current", "notices --tenant acme --since 7d", "notices --threshold 100 --json"
    )
)
@click.option("--tenant", help="Only this tenant's, by name or id.")
@click.option("--threshold", type=click.Choice([80, 100]), help="Only these, in per cent.")
@since_option
@click.option("--before", type=click.IntRange(1), help="Only ids below this, to page on.")
@click.option(
    "--current", is_flag=True, help="The budgets that are near their end now, with what is spent."
)
@click.option("--limit", type=click.IntRange(1, 1000), default=100, show_default=True)
@target_options
def notices(target: Target, limit: int, *, current: bool, **options: Any) -> None:
    """List budgets of which 80 or 100 per cent were spent, the latest first.

    At 100 per cent calls are refused, even where a rest too small for them is left.
    """
    wanted = given(options)
    if current:
        if wanted:
            raise click.UsageError("--current takes no other condition")
        rows = work(target, lambda desk: desk.notices.current(limit))
        show_rows(rows, CURRENT, "No budget is near its end.", as_json=target.as_json)
    else:
        rows = work(target, lambda desk: desk.notices.listing(**wanted, limit=limit))
        show_rows(rows, COLUMNS, "There is no notice.", as_json=target.as_json)
    note_if_cut(rows, limit)
