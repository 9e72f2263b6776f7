"""`trio-gateway admin ...`: who may use the admin listener."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Any

import click

from trio_gateway.cli.door import work
from trio_gateway.cli.options import Instant, Lifted, examples, target_options
from trio_gateway.cli.show import show_done, show_json, show_row, show_rows

if TYPE_CHECKING:
    from trio_gateway.cli.options import Target

COLUMNS = ("name", "id", "role", "state", "expires_at", "created_at")
ROLES = ("admin", "viewer", "metrics")
EMPTY = "There is no admin. Make one with `trio-gateway admin create NAME --role admin`."
ONCE = "The token is shown this once: keep it now."


@click.group(
    epilog=examples(
        "admin create grafana --role metrics",
        "admin rotate admin",
        "admin disable somebody",
    )
)
def admin() -> None:
    """Admins: tokens for the admin API, the dashboard and /metrics."""


role_option = click.option(
    "--role",
    type=click.Choice(ROLES),
    required=True,
    help="admin changes, viewer sees, metrics reads /metrics alone.",
)


@admin.command(
    epilog=examples("admin create ada --role admin", "admin create ci --role viewer --expires 90d")
)
@click.argument("name")
@role_option
@click.option("--expires", "expires_at", type=Instant(1), help="2030-12-31, 30d or none.")
@target_options
def create(name: str, role: str, expires_at: datetime | Lifted | None, target: Target) -> None:
    """Add an admin and show the token, once."""
    until = expires_at if isinstance(expires_at, datetime) else None
    row = work(target, lambda desk: desk.admins.create(name, role, until))
    show_token(row, f"Token of {row['name']} ({row['role']}):", as_json=target.as_json)


@admin.command(name="list", epilog=examples("admin list", "admin list --json"))
@target_options
def list_(target: Target) -> None:
    """List admins by name, never their tokens."""
    rows = work(target, lambda desk: desk.admins.listing())
    show_rows(rows, COLUMNS, EMPTY, as_json=target.as_json)


@admin.command(epilog=examples("admin show ada --json"))
@click.argument("name")
@target_options
def show(name: str, target: Target) -> None:
    """Show one admin, by name or id."""
    show_row(work(target, lambda desk: desk.admins.show(name)), as_json=target.as_json)


@admin.command(epilog=examples("admin rotate ada"))
@click.argument("name")
@target_options
def rotate(name: str, target: Target) -> None:
    """Give an admin a new token, and show it once; the old one and its sessions end at once."""
    row = work(target, lambda desk: desk.admins.rotate(name))
    show_token(row, f"New token of {row['name']} ({row['role']}):", as_json=target.as_json)


@admin.command(epilog=examples("admin assign ada --role viewer"))
@click.argument("name")
@role_option
@target_options
def assign(name: str, role: str, target: Target) -> None:
    """Change an admin's role; it holds from the next request on."""
    row = work(target, lambda desk: desk.admins.assign(name, role))
    show_done(row, f"{row['name']} is {row['role']}.", as_json=target.as_json)


@admin.command(
    epilog=examples("admin update ada --expires 90d", "admin update ada --expires never")
)
@click.argument("name")
@click.option(
    "--expires", "expires_at", type=Instant(1), required=True, help="2030-12-31, 30d or none."
)
@target_options
def update(name: str, expires_at: datetime | Lifted, target: Target) -> None:
    """Change when an admin's token ends; the token stays."""
    until = expires_at if isinstance(expires_at, datetime) else None
    row = work(target, lambda desk: desk.admins.update(name, {"expires_at": until}))
    show_done(row, f"{row['name']} is changed.", as_json=target.as_json)


@admin.command(epilog=examples("admin disable ada"))
@click.argument("name")
@target_options
def disable(name: str, target: Target) -> None:
    """Refuse an admin's token and end the sessions, until it is enabled again."""
    row = work(target, lambda desk: desk.admins.disable(name))
    show_done(row, f"{row['name']} is disabled.", as_json=target.as_json)


@admin.command(epilog=examples("admin enable ada"))
@click.argument("name")
@target_options
def enable(name: str, target: Target) -> None:
    """Let a disabled admin's token work again."""
    row = work(target, lambda desk: desk.admins.enable(name))
    show_done(row, f"{row['name']} is enabled.", as_json=target.as_json)


@admin.command(epilog=examples("admin delete ada"))
@click.argument("name")
@target_options
def delete(name: str, target: Target) -> None:
    """Remove an admin and end the sessions."""
    row = work(target, lambda desk: desk.admins.delete(name))
    gone = {"id": row["id"], "name": row["name"], "deleted": True}
    show_done(gone, f"{row['name']} is gone.", as_json=target.as_json)


def show_token(row: dict[str, Any], sentence: str, *, as_json: bool) -> None:
    """Print the one answer that holds a whole token."""
    if as_json:
        first = {name: row[name] for name in ("id", "name", "token")}
        show_json(first | row)
    else:
        click.echo(f"{sentence}\n\n  {row['token']}\n\n{ONCE}")
