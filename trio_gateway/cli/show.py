"""Answers: JSON for programs, tables and sentences for people."""

from __future__ import annotations

import json
import sys
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

WIDE = 400  # columns where no terminal limits them


def show_rows(
    rows: Sequence[Mapping[str, Any]], columns: Sequence[str], empty: str, *, as_json: bool
) -> None:
    """Print rows: all they hold as a JSON array, or `columns` as a table, or `empty`."""
    if as_json:
        show_json(list(rows))
    elif rows:
        _table(columns, [[_cell(column, row.get(column)) for column in columns] for row in rows])
    else:
        click.echo(empty)


def show_row(row: Mapping[str, Any], *, as_json: bool) -> None:
    """Print one row: a JSON object, or a line for each column."""
    if as_json:
        show_json(dict(row))
    else:
        _table(("", ""), [[column, _cell(column, value)] for column, value in row.items()])


def show_done(row: Mapping[str, Any], sentence: str, *, as_json: bool) -> None:
    """Print the row that was changed as a JSON object, or say what was done."""
    if as_json:
        show_json(dict(row))
    else:
        click.echo(sentence)


def show_json(value: Any) -> None:
    """Print one line of JSON; instants are ISO 8601."""
    click.echo(json.dumps(value, default=_instant))


def note(sentence: str) -> None:
    """Say something beside the answer, on stderr."""
    click.echo(f"note: {sentence}", err=True)


def note_if_cut(rows: Sequence[Any], limit: int) -> None:
    """Say that there may be more rows than were asked for."""
    if len(rows) == limit:
        note(f"the first {limit} are shown; --limit shows more")


def _instant(value: Any) -> str:
    if isinstance(value, datetime):
        return value.isoformat()
    raise TypeError(f"{type(value).__name__} has no JSON form")


def _cell(column: str, value: Any) -> str:
    if isinstance(value, datetime):
        return value.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%SZ")
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "none"
    if isinstance(value, dict):
        return ", ".join(f"{name} {each}" for name, each in value.items())
    return _ABSENT.get(column, "-") if value is None else str(value)


_ABSENT = {
    "requests_per_minute": "unlimited",
    "tokens_per_minute": "unlimited",
    "budget": "unlimited",
    "effective_budget": "unlimited",
    "max_output_tokens": "unlimited",
    "models": "all of the tenant's",
    "expires_at": "never",
}


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    # rich takes a tenth of a second to import, which JSON and --help need not pay
    from rich.box import SIMPLE_HEAD  # noqa: PLC0415
    from rich.console import Console  # noqa: PLC0415
    from rich.table import Table  # noqa: PLC0415
    from rich.text import Text  # noqa: PLC0415

    named = any(columns)
    table = Table(box=SIMPLE_HEAD if named else None, show_header=named, pad_edge=False)
    for column in columns:
        table.add_column(column.replace("_", " "), overflow="fold")
    for row in rows:
        # Text, not str: a name that looks like markup is still a name
        table.add_row(*(Text(cell) for cell in row))
    Console(width=None if sys.stdout.isatty() else WIDE).print(table)
