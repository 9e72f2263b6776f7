"""`trio-gateway key ...`: what callers present."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any

import click

from trio_gateway.cli.door import work
from trio_gateway.cli.extension import extension_of, extension_options, told
from trio_gateway.cli.options import (
    NONE,
    Duration,
    Instant,
    examples,
    given,
    limit_options,
    target_options,
)
from trio_gateway.cli.show import note_if_cut, show_done, show_json, show_row, show_rows

if TYPE_CHECKING:
    from collections.abc import Callable

    from trio_gateway.cli.options import Target

COLUMNS = (
    "tenant",
    "name",
    "id",
    "public_id",
    "last4",
    "state",
    "models",
    "budget",
    "expires_at",
    "created_at",
)
ONCE = "The key is shown this once: keep it now."


@click.group(
    epilog=examples(
        "key create --tenant acme --name laptop --expires 90d",
        "key list --tenant acme",
        "key revoke key_4fzyo82mvyr9aBcDeFgH",
    )
)
def key() -> None:
    """Keys: issue, limit, rotate and revoke them."""


def key_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add everything a key can be given."""
    for option in (
        click.option("--expires", "expires_at", type=Instant(1), help="2030-12-31, 30d or none."),
        click.option(
            "--all-models", is_flag=True, default=None, help="Every model of the tenant's."
        ),
        limit_options,
        click.option("--name", help="What to call it; need not be unique."),
    ):
        command = option(command)
    return command


def named(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add KEY and `--tenant`, which tells keys of one name apart."""
    command = click.option("--tenant", help="The tenant whose key it is, if the name needs it.")(
        command
    )
    return click.argument("key_name", metavar="KEY")(command)


@key.command(
    epilog=examples(
        "key create --tenant acme --name laptop --budget 20000 --budget-period day",
        "key create --tenant acme --models llama3.2 --expires 30d --json",
    )
)
@click.option("--tenant", required=True, help="Whose key it is to be, by name or id.")
@key_options
@target_options
def create(tenant: str, target: Target, **options: Any) -> None:
    """Make a key and show it, once; models and limits can only narrow the tenant's."""
    values = values_of(options)
    row = work(target, lambda desk: desk.keyring.issue(tenant, values))
    show_secret(row, f"Key {row['id']} of tenant {row['tenant']}:", as_json=target.as_json)


@key.command(name="list", epilog=examples("key list --tenant acme", "key list --json"))
@click.option("--tenant", help="Only this tenant's, by name or id.")
@click.option("--match", default="", help="Only names that contain this.")
@click.option("--limit", type=click.IntRange(1), default=1000, show_default=True)
@target_options
def list_(tenant: str | None, match: str, limit: int, target: Target) -> None:
    """List keys by tenant and age, never the keys themselves."""
    rows = work(target, lambda desk: desk.keyring.listing(tenant, match, limit))
    empty = "There is no such key. Make one with `trio-gateway key create --tenant NAME`."
    show_rows([listed(row) for row in rows], COLUMNS, empty, as_json=target.as_json)
    note_if_cut(rows, limit)


@key.command(epilog=examples("key show laptop --tenant acme", "key show key_4fzyo82mvyr9 --json"))
@named
@target_options
def show(key_name: str, tenant: str | None, target: Target) -> None:
    """Show one key, by id, public id or name, and what it spent in its present period."""
    row = work(target, lambda desk: desk.keyring.show(key_name, tenant))
    show_row(listed(row), as_json=target.as_json)


@key.command(
    epilog=examples(
        "key update laptop --tenant acme --requests-per-minute 10",
        "key update laptop --expires none --budget none --all-models",
    )
)
@named
@key_options
@target_options
def update(key_name: str, tenant: str | None, target: Target, **options: Any) -> None:
    """Change a key; what is not named stays, and `none` lifts a limit."""
    values = values_of(options)
    if not values:
        raise click.UsageError("key update needs something to change; see --help")
    row = work(target, lambda desk: desk.keyring.update(key_name, values, tenant))
    show_done(listed(row), f"Key {row['id']} is changed.", as_json=target.as_json)


@key.command(
    epilog=examples(
        "key extend laptop --tenant acme --tokens 20000 --until 8h",
        "key extend laptop --end",
    )
)
@named
@extension_options
@target_options
def extend(key_name: str, tenant: str | None, target: Target, **options: Any) -> None:
    """Add tokens to a key's budget for a while; its tenant's still counts beside it."""
    found = extension_of(**options)
    if found is None:
        row = work(target, lambda desk: desk.keyring.end_extension(key_name, tenant))
    else:
        row = work(target, lambda desk: desk.keyring.extend(key_name, *found, tenant=tenant))
    show_done(listed(row), told(row, f"Key {row['id']}"), as_json=target.as_json)


@key.command(epilog=examples("key disable laptop --tenant acme"))
@named
@target_options
def disable(key_name: str, tenant: str | None, target: Target) -> None:
    """Refuse a key and cut its calls, until it is enabled again."""
    row = work(target, lambda desk: desk.keyring.disable(key_name, tenant))
    show_done(listed(row), f"Key {row['id']} is disabled.", as_json=target.as_json)


@key.command(epilog=examples("key enable laptop --tenant acme"))
@named
@target_options
def enable(key_name: str, tenant: str | None, target: Target) -> None:
    """Let a disabled key work again; a revoked one stays revoked."""
    row = work(target, lambda desk: desk.keyring.enable(key_name, tenant))
    show_done(listed(row), f"Key {row['id']} is enabled.", as_json=target.as_json)


@key.command(epilog=examples("key revoke laptop --tenant acme --reason 'laptop stolen'"))
@named
@click.option("--reason", default="", help="Kept with the revocation.")
@target_options
def revoke(key_name: str, tenant: str | None, reason: str, target: Target) -> None:
    """Refuse a key for good, within a second, and cut its calls."""
    row = work(target, lambda desk: desk.keyring.revoke(key_name, tenant, reason))
    show_done(listed(row), f"Key {row['id']} is revoked.", as_json=target.as_json)


@key.command(epilog=examples("key rotate laptop --tenant acme --overlap 24h"))
@named
@click.option(
    "--overlap",
    type=Duration(),
    default=timedelta(hours=24),
    help="How long the old key goes on; 0 ends it now. 24h by default.",
)
@target_options
def rotate(key_name: str, tenant: str | None, overlap: timedelta, target: Target) -> None:
    """Give a key a new secret, and show it once; id, limits and counters stay.

    What an earlier rotation replaced ends at once.
    """
    row = work(target, lambda desk: desk.keyring.rotate(key_name, overlap, tenant))
    show_secret(row, f"Key {row['id']} has a new secret:", as_json=target.as_json)


def show_secret(row: dict[str, Any], sentence: str, *, as_json: bool) -> None:
    """Print the one answer that holds a whole key."""
    if as_json:
        first = {name: row[name] for name in ("id", "public_id", "key")}
        show_json(first | listed(row))
        return
    click.echo(f"{sentence}\n\n  {row['key']}\n\n{ONCE}")
    if row["previous_expires_at"] is not None:
        click.echo(f"The old one works until {row['previous_expires_at']:%Y-%m-%d %H:%M:%SZ}.")


def values_of(options: dict[str, Any]) -> dict[str, Any]:
    """Turn the options that were given into columns; raises UsageError."""
    inherit = options.pop("all_models", None)
    if inherit and options.get("models") is not None:
        raise click.UsageError("--all-models and --models exclude each other")
    if inherit:
        options["models"] = NONE
    return given(options)


def listed(row: dict[str, Any]) -> dict[str, Any]:
    """Put first what tells keys apart."""
    first = ("id", "public_id", "name", "tenant", "state")
    return {name: row[name] for name in first} | row
