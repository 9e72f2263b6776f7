"""What a form changes: what differs from what it was opened with, and no more.

Every field comes with a form. The page therefore notes the row that it showed, and what comes
back as it was is left alone: somebody else may have changed it meanwhile.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

from trio_gateway.services.account_rows import Refused, unit_of
from trio_gateway.web.admin.dashboard import words
from trio_gateway.web.admin.dashboard.forms import STALE, Faults
from trio_gateway.web.admin.dashboard.shell import books

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from trio_gateway.services.account_rows import Overtaken

FIELDS = {"all_models": "grant", "milli_weight": "weight"}  # where they are not called the same
LATEST = 50  # acts in which whoever was first is looked for


@dataclass(frozen=True, slots=True)
class Changes:
    """What is wanted: `values` to be set, and `seen`, what their units were before."""

    values: dict[str, Any]
    seen: dict[str, Any]


def noted(row: Mapping[str, Any], columns: Iterable[str]) -> dict[str, Any]:
    """Return a row for a form to show, with the note of it that the form sends back."""
    note = {column: _plain(row[column]) for column in columns}
    return {**row, "opened": json.dumps(note, default=datetime.isoformat)}


def changes(opened: Mapping[str, Any], wanted: Mapping[str, Any]) -> Changes:
    """Return what is wanted otherwise than the form was opened with. Raises Refused."""
    if not wanted.keys() <= opened.keys():
        raise Refused(STALE)
    values = {column: value for column, value in wanted.items() if value != opened[column]}
    touched = {each for column in values for each in unit_of(column, wanted)}
    return Changes(values, {column: opened[column] for column in wanted if column in touched})


async def told(error: Overtaken, subject: str, row: Mapping[str, Any], wanted: Changes) -> Refused:
    """Say of each column that was overtaken by whom it was changed, and to what."""
    acts = await books().reports.acts(None, LATEST, None, subject)
    return Faults(
        [
            Refused(_said(column, acts, row, wanted.seen), FIELDS.get(column, column))
            for column in error.columns
        ]
    )


def _said(
    column: str, acts: list[dict[str, Any]], row: Mapping[str, Any], seen: Mapping[str, Any]
) -> str:
    first = next((act for act in acts if _concerns(act, column)), None)
    by = "" if first is None else f" by {first['actor']} at {first['at']:%H:%M} UTC"
    return (
        f"was changed meanwhile{by}: it is {_spoken(column, row[column])} now, and was"
        f" {_spoken(column, seen[column])} when you opened this form;"
        " save again to put yours in its place"
    )


def _concerns(act: Mapping[str, Any], column: str) -> bool:
    before, after = act["before"] or {}, act["after"] or {}
    return bool(before.get(column) != after.get(column))


def _spoken(column: str, value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if column == "milli_weight":
        return f"{value / 1000:g}"
    if isinstance(value, datetime):
        return f"{words.instant(value)} UTC"
    if isinstance(value, int):
        return words.number(value)
    if isinstance(value, list):
        return ", ".join(value) or "none"
    return value or "empty"


def _plain(value: Any) -> Any:
    return sorted(value) if isinstance(value, list) else value
