"""`trio-gateway tenant ...`: who may use the installation, and how much."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from trio_gateway.cli.door import work
from trio_gateway.cli.extension import extension_of, extension_options, told
from trio_gateway.cli.options import Limit, examples, given, limit_options, target_options
from trio_gateway.cli.show import note, note_if_cut, show_done, show_row, show_rows

if TYPE_CHECKING:
    from collections.abc import Callable

    from trio_gateway.cli.options import Target

COLUMNS = (
    "name",
    "id",
    "state",
    "models",
    "requests_per_minute",
    "tokens_per_minute",
    "budget",
    "budget_period",
    "keys",
)
EMPTY = "There is no tenant. Add one with `trio-gateway tenant create NAME --all-models`."


@click.group(
    epilog=examples(
        "tenant create acme --all-models --budget 1000000 --budget-period month",
        "tenant update acme --requests-per-minute 60 --budget none",
        "tenant list --json",
    )
)
def tenant() -> None:
    """Tenants: who pays, what they may use and how much."""


def tenant_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add everything a tenant can be given."""
    for option in (
        click.option(
            "--weight-share",
            type=Limit(least=1, most=1000),
            help="This tenant's share of a busy backend; 1 by default.",
        ),
        click.option(
            "--allow-cloud/--no-allow-cloud", default=None, help="Models run by others, elsewhere."
        ),
        click.option("--all-models", is_flag=True, default=None, help="Every model there is."),
        limit_options,
    ):
        command = option(command)
    return command


@tenant.command(
    epilog=examples(
        "tenant create acme --models llama3.2,nomic-embed-text --requests-per-minute 60",
        "tenant create lab --all-models --budget 500000 --budget-period day --json",
    )
)
@click.argument("name")
@tenant_options
@target_options
def create(name: str, target: Target, **options: Any) -> None:
    """Add a tenant; without --models or --all-models it may use none."""
    values = values_of(options)
    row = work(target, lambda desk: desk.accounts.create(name, values))
    done = f"Tenant {row['name']} ({row['id']}) is there; next: trio-gateway key create --tenant "
    show_done(listed(row), done + row["name"], as_json=target.as_json)
    if not row["all_models"] and not row["models"]:
        note("it may use no model yet; see --models and --all-models")


@tenant.command(name="list", epilog=examples("tenant list", "tenant list --match lab --json"))
@click.option("--match", default="", help="Only names that contain this.")
@click.option("--limit", type=click.IntRange(1), default=1000, show_default=True)
@target_options
def list_(match: str, limit: int, target: Target) -> None:
    """List tenants by name."""
    rows = work(target, lambda desk: desk.accounts.listing(match, limit))
    empty = f"No tenant's name contains {match!r}." if match else EMPTY
    rows = [listed(row) for row in rows]
    if not target.as_json:
        rows = [row | {"models": ["all"]} if row["all_models"] else row for row in rows]
    show_rows(rows, COLUMNS, empty, as_json=target.as_json)
    note_if_cut(rows, limit)


@tenant.command(epilog=examples("tenant show acme", "tenant show acme --json"))
@click.argument("name")
@target_options
def show(name: str, target: Target) -> None:
    """Show one tenant, by name or id, and what it spent in its present period."""
    row = work(target, lambda desk: desk.accounts.show(name))
    show_row(listed(row), as_json=target.as_json)


@tenant.command(
    epilog=examples(
        "tenant update acme --models llama3.2,qwen3 --no-allow-cloud",
        "tenant update acme --budget none --requests-per-minute none",
        "tenant update acme --name acme-labs",
    )
)
@click.argument("name")
@click.option("--name", "new_name", help="Another name; the id stays, and what is booked.")
@tenant_options
@target_options
def update(name: str, new_name: str | None, target: Target, **options: Any) -> None:
    """Change a tenant; what is not named stays, and `none` lifts a limit."""
    values = values_of(options) | ({} if new_name is None else {"name": new_name})
    if not values:
        raise click.UsageError("tenant update needs something to change; see --help")
    row = work(target, lambda desk: desk.accounts.update(name, values))
    show_done(listed(row), f"Tenant {row['name']} is changed.", as_json=target.as_json)


@tenant.command(
    epilog=examples(
        "tenant extend acme --tokens 500000 --until 2d",
        "tenant extend acme --tokens 500000 --until 2030-12-31T18:00",
        "tenant extend acme --end",
    )
)
@click.argument("name")
@extension_options
@target_options
def extend(name: str, target: Target, **options: Any) -> None:
    """Add tokens to a tenant's budget for a while; an earlier increase is replaced."""
    found = extension_of(**options)
    if found is None:
        row = work(target, lambda desk: desk.accounts.end_extension(name))
    else:
        row = work(target, lambda desk: desk.accounts.extend(name, *found))
    show_done(listed(row), told(row, f"Tenant {row['name']}"), as_json=target.as_json)


@tenant.command(epilog=examples("tenant disable acme"))
@click.argument("name")
@target_options
def disable(name: str, target: Target) -> None:
    """Refuse a tenant's keys and cut its calls, until it is enabled again."""
    row = work(target, lambda desk: desk.accounts.disable(name))
    show_done(listed(row), f"Tenant {row['name']} is disabled.", as_json=target.as_json)


@tenant.command(epilog=examples("tenant enable acme"))
@click.argument("name")
@target_options
def enable(name: str, target: Target) -> None:
    """Let a disabled tenant's keys work again."""
    row = work(target, lambda desk: desk.accounts.enable(name))
    show_done(listed(row), f"Tenant {row['name']} is enabled.", as_json=target.as_json)


@tenant.command(epilog=examples("tenant delete acme"))
@click.argument("name")
@target_options
def delete(name: str, target: Target) -> None:
    """Remove a tenant and its keys, and cut its calls; the ledger keeps its rows."""
    row = work(target, lambda desk: desk.accounts.delete(name))
    gone = {"id": row["id"], "name": row["name"], "deleted": True}
    show_done(gone, f"Tenant {row['name']} and its keys are gone.", as_json=target.as_json)


def values_of(options: dict[str, Any]) -> dict[str, Any]:
    """Turn the options that were given into columns; raises UsageError."""
    values = given(options)
    if values.get("all_models") and "models" in values:
        raise click.UsageError("--all-models and --models exclude each other")
    if "models" in values:
        values["all_models"] = False
    elif values.get("all_models"):
        values["models"] = []
    if values.get("weight_share", 1) is None:
        values["weight_share"] = 1
    return values


def listed(row: dict[str, Any]) -> dict[str, Any]:
    """Put a tenant's state beside its name."""
    state = "active" if row["disabled_at"] is None else "disabled"
    return {"id": row["id"], "name": row["name"], "state": state} | row
