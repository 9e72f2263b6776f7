"""`trio-gateway batch ...`: every tenant's batches, and one of your own from a file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from trio_gateway.cli.door import Failure, work
from trio_gateway.cli.options import examples, target_options
from trio_gateway.cli.show import note_if_cut, show_done, show_row, show_rows
from trio_gateway.core.batches import ENDPOINTS, Status

if TYPE_CHECKING:
    from trio_gateway.cli.batch_watch import Ending
    from trio_gateway.cli.options import Target

COLUMNS = (
    "id",
    "tenant",
    "status",
    "paused",
    "endpoint",
    "total",
    "completed",
    "failed",
    "created_at",
)
EMPTY = "There is no batch. `trio-gateway batch run FILE` makes one; callers use POST /v1/batches."
INTERRUPTED = 130  # as shells count Ctrl-C
FILE = click.Path(path_type=Path, dir_okay=False)


@click.group(
    epilog=examples(
        "batch list --status in_progress",
        "batch watch batch_0123456789abcdef01234567",
        "batch run questions.jsonl --tenant acme",
    )
)
def batch() -> None:
    """Batches: follow them, cancel them, run one of your own."""


@batch.command(
    name="list", epilog=examples("batch list", "batch list --tenant acme --status completed --json")
)
@click.option("--tenant", help="Only this tenant's, by name or id.")
@click.option("--status", type=click.Choice([str(status) for status in Status]))
@click.option("--limit", type=click.IntRange(1), default=100, show_default=True)
@target_options
def list_(tenant: str | None, status: str | None, limit: int, target: Target) -> None:
    """List batches, the latest first."""
    # the stores' clients take 0.4 s to import, which --help need not pay; so below
    from trio_gateway.cli.batch_desk import listing  # noqa: PLC0415

    rows = work(target, lambda desk: listing(desk, tenant, status, limit))
    empty = "No batch is so." if tenant or status else EMPTY
    show_rows(rows, COLUMNS, empty, as_json=target.as_json)
    note_if_cut(rows, limit)


@batch.command(epilog=examples("batch show batch_0123456789abcdef01234567 --json"))
@click.argument("batch_id", metavar="ID")
@target_options
def show(batch_id: str, target: Target) -> None:
    """Show one batch, its counts, its times and what was wrong with its file."""
    from trio_gateway.cli.batch_desk import find, legible  # noqa: PLC0415

    row = work(target, lambda desk: find(desk, batch_id))
    show_row(row if target.as_json else legible(row), as_json=target.as_json)


@batch.command(epilog=examples("batch cancel batch_0123456789abcdef01234567"))
@click.argument("batch_id", metavar="ID")
@target_options
def cancel(batch_id: str, target: Target) -> None:
    """Cancel a batch; what was answered already is kept in its output file."""
    from trio_gateway.cli.batch_desk import cancel as act  # noqa: PLC0415

    row = work(target, lambda desk: act(desk, batch_id))
    sentence = f"Batch {row['id']} is {row['status']}."
    show_done(row, sentence, as_json=target.as_json)


@batch.command(epilog=examples("batch watch batch_0123456789abcdef01234567"))
@click.argument("batch_id", metavar="ID")
@target_options
def watch(batch_id: str, target: Target) -> None:
    """Follow a batch until it ends; exit 0 if it completed, else 1.

    With --json there is one object a line for every change.
    """
    from trio_gateway.cli.batch_watch import watch as follow  # noqa: PLC0415

    conclude(work(target, lambda desk: follow(desk, batch_id, as_json=target.as_json)))


@batch.command(
    epilog=examples(
        "batch run questions.jsonl",
        "batch run questions.jsonl --tenant acme --key laptop --output answers.jsonl",
        "batch run questions.jsonl --idempotency-key monday --json",
    )
)
@click.argument("file", type=FILE)
@click.option("--tenant", help="Whose batch it is, by name or id; the only tenant by default.")
@click.option("--key", help="In which key's name, by name or id; the only live key by default.")
@click.option("--endpoint", type=click.Choice(ENDPOINTS), help="The first line's url by default.")
@click.option("--output", type=FILE, help="Where to write answers; FILE.output.jsonl by default.")
@click.option("--errors", type=FILE, help="Where to write failures; FILE.errors.jsonl by default.")
@click.option("--idempotency-key", help="Run again with the same one, it is the same batch.")
@click.option("--force", is_flag=True, help="Overwrite the files to write.")
@target_options
def run(file: Path, target: Target, **options: Any) -> None:
    """Run FILE, one request a line, as a batch of a tenant's; write its answers beside it.

    A gateway must be running. Interrupted, the batch goes on: see `batch watch`.
    """
    from trio_gateway.cli.batch_run import Order, perform  # noqa: PLC0415

    order = Order(file=file, **options)
    conclude(work(target, lambda desk: perform(desk, order, as_json=target.as_json)))


def conclude(ending: Ending) -> None:
    """End the command as its batch ended; raises Failure."""
    if ending.interrupted:
        click.echo(f"trio-gateway: {ending.line}", err=True)
        click.get_current_context().exit(INTERRUPTED)
    if ending.line is not None:
        raise Failure(ending.line)
