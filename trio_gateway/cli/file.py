"""`trio-gateway file ...`: what tenants uploaded, and what their batches wrote."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from trio_gateway.cli.door import work
from trio_gateway.cli.options import examples, target_options
from trio_gateway.cli.show import note_if_cut, show_done, show_row, show_rows
from trio_gateway.dialects.openai_files import LISTED

if TYPE_CHECKING:
    from trio_gateway.cli.options import Target

COLUMNS = ("id", "tenant", "purpose", "filename", "bytes", "created_at", "expires_at")
EMPTY = "There is no file. Callers upload them with POST /v1/files."


@click.group(
    epilog=examples(
        "file list --tenant acme --purpose batch_output",
        "file get file-0123456789abcdef01234567 -o answers.jsonl",
    )
)
def file() -> None:
    """Files: see them, read them, delete them."""


@file.command(
    name="list", epilog=examples("file list", "file list --tenant acme --purpose batch --json")
)
@click.option("--tenant", help="Only this tenant's, by name or id.")
@click.option("--purpose", type=click.Choice(LISTED))
@click.option("--limit", type=click.IntRange(1), default=100, show_default=True)
@target_options
def list_(tenant: str | None, purpose: str | None, limit: int, target: Target) -> None:
    """List files, the latest first."""
    rows = work(target, lambda desk: desk.files.listing(tenant, purpose, limit))
    empty = "No file is so." if tenant or purpose else EMPTY
    show_rows(rows, COLUMNS, empty, as_json=target.as_json)
    note_if_cut(rows, limit)


@file.command(epilog=examples("file show file-0123456789abcdef01234567 --json"))
@click.argument("file_id", metavar="ID")
@target_options
def show(file_id: str, target: Target) -> None:
    """Show whose file it is, its size and its times."""
    show_row(work(target, lambda desk: desk.files.show(file_id)), as_json=target.as_json)


@file.command(
    epilog=examples(
        "file get file-0123456789abcdef01234567 | head -1",
        "file get file-0123456789abcdef01234567 -o answers.jsonl",
    )
)
@click.argument("file_id", metavar="ID")
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path, dir_okay=False, allow_dash=True),
    default=Path("-"),
    help="Where to write it; - is stdout, the default.",
)
@click.option("--force", is_flag=True, help="Overwrite what is there.")
@target_options
def get(file_id: str, output: Path, force: bool, target: Target) -> None:  # noqa: FBT001 - click's
    """Write a file's contents; they are a tenant's own, and that you read them is recorded."""
    to_stdout = str(output) == "-"
    if to_stdout and target.as_json:
        raise click.UsageError("--json needs --output PATH: stdout is for the contents")
    # the blob store's client takes 0.1 s to import, which --help need not pay
    from trio_gateway.cli.file_copy import copy  # noqa: PLC0415

    place = None if to_stdout else output
    row = work(target, lambda desk: copy(desk, file_id, place, force=force))
    if not to_stdout:
        sentence = f"{row['bytes']:,} bytes are in {output}."
        show_done(row | {"path": str(output)}, sentence, as_json=target.as_json)


@file.command(epilog=examples("file delete file-0123456789abcdef01234567"))
@click.argument("file_id", metavar="ID")
@target_options
def delete(file_id: str, target: Target) -> None:
    """Delete a file; a batch that reads it goes on."""
    row = work(target, lambda desk: desk.files.delete(file_id))
    gone = {"id": row["id"], "tenant": row["tenant"], "deleted": True}
    show_done(gone, f"File {row['id']} of {row['tenant']} is gone.", as_json=target.as_json)
