"""`trio-gateway usage`, `audit` and `ledger ...`: what was used, refused, done and booked."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from trio_gateway.cli.door import Failure, work
from trio_gateway.cli.options import NONE, Instant, Lifted, examples, target_options
from trio_gateway.cli.show import note_if_cut, show_json, show_row, show_rows

if TYPE_CHECKING:
    from datetime import datetime

    from trio_gateway.cli.options import Target
    from trio_gateway.cli.session import Desk

SUMS = ("requests", "failures", "prompt_tokens", "completion_tokens", "charged_tokens")
GROUPS = {
    "model": ("model",),
    "key": ("key_id", "key", "tenant"),
    "tenant": ("tenant_id", "tenant"),
    "outcome": ("outcome",),
    "day": ("day",),
}
REFUSALS = (
    "at",
    "last_at",
    "count",
    "code",
    "status_code",
    "method",
    "path",
    "client",
    "tenant_id",
    "key_id",
)
ACTS = ("at", "actor", "action", "subject")
since_option = click.option(
    "--since", type=Instant(-1), help="A date (2030-01-31), or a duration back from now (7d)."
)


@click.command(
    epilog=examples(
        "usage --by day --since 30d",
        "usage --tenant acme --by key",
        "usage --by tenant --since 7d",
        "usage --key laptop --by model --json",
    )
)
@click.option("--tenant", help="Only this tenant's, by name or id.")
@click.option("--key", "key_name", help="Only this key's, by name or id.")
@since_option
@click.option("--by", type=click.Choice(list(GROUPS)), default="model", show_default=True)
@target_options
def usage(
    tenant: str | None,
    key_name: str | None,
    since: datetime | Lifted | None,
    by: Any,
    target: Target,
) -> None:
    """Sum the ledger: requests, failures, tokens and outcomes."""

    async def ask(desk: Desk) -> list[dict[str, Any]]:
        key_id = None
        if key_name is not None:
            key_id = (await desk.keyring.show(key_name, tenant))["id"]
        return await desk.reports.usage(by, tenant, key_id, _instant(since))

    rows = work(target, ask)
    columns = (*GROUPS[by], *SUMS, *(() if by == "outcome" else ("outcomes",)))
    show_rows(rows, columns, "Nothing was used.", as_json=target.as_json)


@click.command(
    epilog=examples(
        "audit --since 24h",
        "audit --tenant acme --json",
        "audit --acts --limit 20",
        "audit --acts --subject laptop",
    )
)
@click.option("--tenant", help="Only refusals of this tenant's keys, by name or id.")
@click.option("--acts", is_flag=True, help="What operators changed, not what callers were refused.")
@click.option("--subject", help="Only acts that changed this, by name or id.")
@since_option
@click.option("--limit", type=click.IntRange(1), default=100, show_default=True)
@target_options
def audit(
    tenant: str | None,
    acts: bool,  # noqa: FBT001 - click passes options by name
    subject: str | None,
    since: datetime | Lifted | None,
    limit: int,
    target: Target,
) -> None:
    """List refusals, the latest first; identical ones share a row and a count."""
    after = _instant(since)
    if acts:
        if tenant is not None:
            raise click.UsageError("--acts and --tenant exclude each other")
        rows = work(target, lambda desk: desk.reports.acts(after, limit, subject=subject))
        show_rows(rows, ACTS, "Nobody changed anything.", as_json=target.as_json)
    else:
        if subject is not None:
            raise click.UsageError("--subject needs --acts")
        rows = work(target, lambda desk: desk.reports.refusals(after, tenant, limit))
        show_rows(rows, REFUSALS, "Nothing was refused.", as_json=target.as_json)
    note_if_cut(rows, limit)


@click.group(epilog=examples("ledger verify", "ledger show req_0123456789abcdef01234567"))
def ledger() -> None:
    """Check the books, and look one call up."""


@ledger.command(
    epilog=examples(
        "ledger show req_0123456789abcdef01234567",
        "ledger show req_0123456789abcdef01234567 --json",
    )
)
@click.argument("request_id")
@target_options
def show(request_id: str, target: Target) -> None:
    """Show what was booked for one call, by the x-request-id of its answer."""

    async def ask(desk: Desk) -> dict[str, Any]:
        # loaded with the session, which --help need not pay
        from trio_gateway.services.ledger_pages import (  # noqa: PLC0415
            LedgerFilter,
            LedgerPages,
        )

        rows = await LedgerPages(desk.postgres).listing(LedgerFilter(request_id=request_id), 1)
        if not rows:
            raise Failure("no call of that id is booked: it is under way, or was refused before")
        return rows[0]

    show_row(work(target, ask), as_json=target.as_json)


@ledger.command(epilog=examples("ledger verify", "ledger verify --json"))
@target_options
def verify(target: Target) -> None:
    """Compare the ledger with the sums and the live counters; exit 1 if they differ."""
    # the ledger brings both stores' clients, which --help need not pay
    from trio_gateway.cli.books import compare  # noqa: PLC0415

    found = work(target, compare)
    if target.as_json:
        show_json(found)
    else:
        click.echo(_verdict(found))
    if not found["ok"]:
        click.echo("trio-gateway: the books differ", err=True)
        click.get_current_context().exit(1)


def _verdict(found: dict[str, Any]) -> str:
    lines = [
        f"{found['checked']} sums checked, {found['holds_open']} calls in flight: "
        + ("the books agree." if found["ok"] else "THE BOOKS DIFFER:")
    ]
    lines += [
        "  " + ", ".join(f"{name} {value}" for name, value in difference.items())
        for difference in found["differences"]
    ]
    return "\n".join(lines)


def _instant(since: datetime | Lifted | None) -> datetime | None:
    return None if since is None or since is NONE or isinstance(since, Lifted) else since
