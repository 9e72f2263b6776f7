"""`trio-gateway webhook ...`: who is told when a budget nears its end."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from trio_gateway.cli.door import work
from trio_gateway.cli.options import examples, target_options
from trio_gateway.cli.show import note, show_done, show_json, show_row, show_rows

if TYPE_CHECKING:
    from trio_gateway.cli.options import Target
    from trio_gateway.cli.session import Desk

COLUMNS = ("name", "id", "state", "tenant", "url", "waiting")
DELIVERIES = (
    "id",
    "notice_id",
    "state",
    "attempts",
    "status_code",
    "error",
    "created_at",
    "next_at",
    "ended_at",
)
ONCE = "The secret that signs its messages is shown this once: keep it now."
EMPTY = "There is no webhook. Add one with `trio-gateway webhook create NAME --url URL`."
TICK = 0.25  # seconds between two looks at a test message


@click.group(
    epilog=examples(
        "webhook create ops --url https://hooks.example.com/budgets",
        "webhook test ops",
        "webhook show ops",
    )
)
def webhook() -> None:
    """Webhooks: tell others when 80 and 100 per cent of a budget are spent.

    Hosts must be listed in TRIO_GATEWAY_WEBHOOK_HOSTS, here and where messages are sent.
    """


@webhook.command(
    epilog=examples(
        "webhook create ops --url https://hooks.example.com/budgets",
        "webhook create acme-team --url https://hooks.example.com/acme --tenant acme --json",
    )
)
@click.argument("name")
@click.option("--url", required=True, help="https, on a host that is listed; http on loopback.")
@click.option("--tenant", help="Only this tenant's notices, by name or id; all by default.")
@target_options
def create(name: str, url: str, tenant: str | None, target: Target) -> None:
    """Add a webhook and show the secret that signs its messages, once."""
    row = work(target, lambda desk: desk.webhooks.create(name, url, tenant))
    show_secret(row, f"Webhook {row['name']} ({row['id']}):", as_json=target.as_json)


@webhook.command(name="list", epilog=examples("webhook list", "webhook list --json"))
@target_options
def list_(target: Target) -> None:
    """List webhooks by name; `waiting` counts what has yet to be delivered or given up."""
    rows = work(target, lambda desk: desk.webhooks.listing())
    rows = [listed(row) for row in rows]
    if not target.as_json:
        rows = [{**row, "tenant": row["tenant"] or "all"} for row in rows]
    show_rows(rows, COLUMNS, EMPTY, as_json=target.as_json)


@webhook.command(epilog=examples("webhook show ops", "webhook show ops --json"))
@click.argument("name")
@target_options
def show(name: str, target: Target) -> None:
    """Show one webhook, by name or id, and how its latest deliveries went."""
    row = listed(work(target, lambda desk: desk.webhooks.show(name)))
    if target.as_json:
        show_json(row)
        return
    deliveries = row.pop("deliveries")
    show_row(row, as_json=False)
    show_rows(deliveries, DELIVERIES, "Nothing was sent to it yet.", as_json=False)


@webhook.command(
    epilog=examples(
        "webhook update ops --url https://hooks.example.com/other",
        "webhook update ops --tenant acme",
        "webhook update ops --all-tenants",
    )
)
@click.argument("name")
@click.option("--url", help="Where to send to.")
@click.option("--tenant", help="Only this tenant's notices, by name or id.")
@click.option("--all-tenants", is_flag=True, help="Every tenant's notices.")
@target_options
def update(
    name: str,
    url: str | None,
    tenant: str | None,
    all_tenants: bool,  # noqa: FBT001 - click passes options by name
    target: Target,
) -> None:
    """Change where a webhook leads, or whose notices it gets."""
    if all_tenants and tenant is not None:
        raise click.UsageError("--tenant and --all-tenants exclude each other")
    values: dict[str, Any] = {} if url is None else {"url": url}
    if all_tenants or tenant is not None:
        values["tenant"] = tenant
    if not values:
        raise click.UsageError("webhook update needs something to change; see --help")
    change(name, values, target, "is changed")


@webhook.command(epilog=examples("webhook disable ops"))
@click.argument("name")
@target_options
def disable(name: str, target: Target) -> None:
    """Send nothing to a webhook; later notices pass it by, earlier ones wait."""
    change(name, {"disabled": True}, target, "is disabled")


@webhook.command(epilog=examples("webhook enable ops"))
@click.argument("name")
@target_options
def enable(name: str, target: Target) -> None:
    """Send to a disabled webhook again."""
    change(name, {"disabled": False}, target, "is enabled")


@webhook.command(epilog=examples("webhook rotate ops"))
@click.argument("name")
@target_options
def rotate(name: str, target: Target) -> None:
    """Give a webhook a new secret, and show it once; the old one signs nothing more."""
    row = work(target, lambda desk: desk.webhooks.rotate(name))
    show_secret(row, f"Webhook {row['name']} has a new secret:", as_json=target.as_json)


@webhook.command(epilog=examples("webhook test ops"))
@click.argument("name")
@click.option(
    "--wait",
    type=click.FloatRange(0, 60),
    default=15,
    show_default=True,
    help="Seconds to wait for the first answer.",
)
@target_options
def test(name: str, wait: float, target: Target) -> None:
    """Have a test message sent, as notices are; exit 1 if it was not taken."""
    row = work(target, lambda desk: tried(desk, name, wait))
    went = outcome(row)
    show_done(row, went, as_json=target.as_json)
    if row["state"] == "waiting" and row["attempts"] == 0:
        note("no running gateway has sent it yet; see `trio-gateway webhook show`")
    elif row["state"] != "delivered":
        if target.as_json:
            note(went)
        click.get_current_context().exit(1)


@webhook.command(epilog=examples("webhook delete ops"))
@click.argument("name")
@target_options
def delete(name: str, target: Target) -> None:
    """Remove a webhook, with what it had yet to be told."""
    row = work(target, lambda desk: desk.webhooks.delete(name))
    gone = {"id": row["id"], "name": row["name"], "deleted": True}
    show_done(gone, f"Webhook {row['name']} is gone.", as_json=target.as_json)


def change(name: str, values: dict[str, Any], target: Target, what: str) -> None:
    """Set some columns and say so."""
    row = work(target, lambda desk: desk.webhooks.update(name, values))
    show_done(listed(row), f"Webhook {row['name']} {what}.", as_json=target.as_json)


async def tried(desk: Desk, name: str, wait: float) -> dict[str, Any]:
    """Ask for a test message, and wait a while for how its first attempt ends."""
    import trio  # noqa: PLC0415 - loaded with the session, which --help need not pay

    row = await desk.webhooks.test(name)
    with trio.move_on_after(wait):
        while row["state"] == "waiting" and row["status_code"] is None and row["error"] is None:
            await trio.sleep(TICK)
            row = await desk.webhooks.delivery(row["id"])
    return row


def outcome(row: dict[str, Any]) -> str:
    """Say how a test message fared."""
    if row["state"] == "delivered":
        return f"The test message was taken, with status {row['status_code']}."
    if row["error"] is None:
        return "The test message waits to be sent."
    status = "" if row["status_code"] is None else f" (status {row['status_code']})"
    return f"The test message was not taken: {row['error']}{status}."


def show_secret(row: dict[str, Any], sentence: str, *, as_json: bool) -> None:
    """Print the one answer that holds a secret."""
    if as_json:
        show_json({"id": row["id"], "name": row["name"], "secret": row["secret"]} | listed(row))
        return
    click.echo(f"{sentence}\n\n  {row['secret']}\n\n{ONCE}")


def listed(row: dict[str, Any]) -> dict[str, Any]:
    """Put a webhook's state beside its name."""
    state = "active" if row["disabled_at"] is None else "disabled"
    return {"id": row["id"], "name": row["name"], "state": state} | row
