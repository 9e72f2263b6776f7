"""What the books of tenants and keys share: finding by name or id, checks, and the record."""

from __future__ import annotations

import json
import secrets
from datetime import datetime
from typing import TYPE_CHECKING, Any

from trio_gateway.core.domain import Period
from trio_gateway.core.keys import ALPHABET, PREFIX

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from trio_gateway.clients.postgres import Connection

Row = dict[str, Any]

BIGGEST = 2**63 - 1
_COUNTS = ("requests_per_minute", "tokens_per_minute", "budget")
_LENGTH = {Period.DAY: 0, Period.MONTH: 1, Period.TOTAL: 2}
_FIND_TENANT = """
SELECT *, gateway.effective_budget(budget, budget_extra, budget_extra_until) AS effective_budget
FROM gateway.tenants WHERE id = $1 OR name = $1 ORDER BY id = $1 DESC LIMIT 1
"""
_SPENT = """
SELECT coalesce(sum(charged), 0)::bigint FROM gateway.spend
WHERE scope = $1 AND period_start >= CASE $2
    WHEN 'day' THEN (now() AT TIME ZONE 'UTC')::date
    WHEN 'month' THEN date_trunc('month', now() AT TIME ZONE 'UTC')::date
    ELSE '-infinity'::date END
"""
# Columns that mean something together alone: who changes one has had the other in mind.
UNITS = (("all_models", "models"), ("budget", "budget_period"))
_HIDDEN = ("hash", "previous_hash")


class Refused(Exception):
    """Raised for a change that cannot be made; the text is one sentence.

    `param` names the column at fault, where there is one.
    """

    def __init__(self, message: str, param: str | None = None) -> None:
        """`message` may name tenants and columns, never a key."""
        self.message = message
        self.param = param
        super().__init__(message)


class Taken(Refused):
    """Raised where somebody has the name already."""


class Unfit(Refused):
    """Raised where the state of what is there does not allow the change."""


class Overtaken(Unfit):
    """Raised where columns are no more what the author of a change had seen."""

    def __init__(self, columns: tuple[str, ...]) -> None:
        """`columns` are those that somebody else has changed since."""
        self.columns = columns
        super().__init__("was changed meanwhile", columns[0])


class NotFound(Refused):
    """Raised where no tenant, key or model answers to a name or id.

    `param` is what was named, such as `tenant`.
    """


def new_id(prefix: str) -> str:
    """Return `prefix` and twenty random base62 digits."""
    return prefix + "".join(secrets.choice(ALPHABET) for _ in range(20))


def check_values(values: Mapping[str, Any], columns: Iterable[str]) -> None:
    """Raise Refused for a value out of range, and TypeError for a column not in `columns`."""
    unknown = values.keys() - set(columns)
    if unknown:
        raise TypeError(f"not a column: {', '.join(sorted(unknown))}")
    for column in _COUNTS:
        _check_range(values, column, 0, BIGGEST)
    _check_range(values, "max_output_tokens", 1, BIGGEST)
    if "weight_share" in values and values["weight_share"] is None:
        raise Refused("must be 1 to 1000", "weight_share")
    _check_range(values, "weight_share", 1, 1000)
    if values.get("all_models") and values.get("models"):
        raise Refused("none can be named beside all_models", "models")
    if values.get("budget_period", Period.DAY) not in {str(period) for period in Period}:
        raise Refused("must be day, month or total", "budget_period")


def check_seen(row: Mapping[str, Any], seen: Mapping[str, Any], values: Mapping[str, Any]) -> None:
    """Raise Overtaken where a column of `seen` has another value now, unless `values` has it too.

    Of UNITS `seen` holds all or none.
    """

    def differ(column: str, wanted: Mapping[str, Any]) -> bool:
        return bool(_unordered(row[column]) != _unordered(wanted[column]))

    after = {**seen, **values}
    columns = [
        column
        for column in seen
        if differ(column, seen) and any(differ(each, after) for each in unit_of(column, seen))
    ]
    if columns:
        raise Overtaken(tuple(columns))


def unit_of(column: str, columns: Iterable[str]) -> tuple[str, ...]:
    """Return those of the columns that are changed with this one, which is one of them."""
    unit = next((unit for unit in UNITS if column in unit), (column,))
    return tuple(each for each in columns if each in unit)


def check_narrows(key: Mapping[str, Any], tenant: Mapping[str, Any]) -> None:
    """Raise Refused where a key would be granted what its tenant is not."""
    for column in ("requests_per_minute", "tokens_per_minute", "max_output_tokens"):
        _check_within(key, tenant, column)
    if _LENGTH[Period(key["budget_period"])] <= _LENGTH[Period(tenant["budget_period"])]:
        _check_within(key, tenant, "budget")
    if key["models"] is None or tenant["all_models"]:
        return
    beyond = sorted(set(key["models"]) - set(tenant["models"]))
    if beyond:
        has = ", ".join(sorted(tenant["models"])) or "none"
        raise Refused(
            f"{', '.join(beyond)} is not among tenant {tenant['name']}'s models ({has})", "models"
        )


async def find_tenant(connection: Connection, name: str, *, lock: bool = False) -> Row:
    """Return a tenant's row by id or name, its id first; raises NotFound."""
    row = await connection.fetchrow(
        _FIND_TENANT + (" FOR UPDATE" if lock else ""),
        storable(name),
    )
    if row is None:
        raise NotFound(f"there is no tenant {printable(name)}", "tenant")
    return dict(row)


async def start_of(connection: Connection, table: str, before: str | None) -> int:
    """Return the ordinal below which a list goes on; raises Refused after a row that is gone.

    `table` is the program's own word.
    """
    if before is None:
        return BIGGEST
    ordinal: int | None = await connection.fetchval(
        f"SELECT ordinal FROM gateway.{table} WHERE id = $1",  # noqa: S608
        storable(before),
    )
    if ordinal is None:
        raise Refused("the list cannot go on after what is gone; begin again", "before")
    return ordinal


async def insert(connection: Connection, table: str, values: Mapping[str, Any]) -> None:
    """Insert one row; `table` and the columns are the program's own words."""
    places = ", ".join(f"${place}" for place in range(1, len(values) + 1))
    await connection.execute(
        f"INSERT INTO gateway.{table} ({', '.join(values)}) VALUES ({places})",  # noqa: S608
        *values.values(),
    )


async def update(
    connection: Connection, table: str, row_id: str, values: Mapping[str, Any]
) -> None:
    """Update one row by its id; `table` and the columns are the program's own words."""
    changes = [f"{column} = ${place}" for place, column in enumerate(values, 2)]
    await connection.execute(
        f"UPDATE gateway.{table} SET {', '.join([*changes, 'updated_at = now()'])}"  # noqa: S608
        " WHERE id = $1",
        row_id,
        *values.values(),
    )


async def write_event(
    connection: Connection,
    who_what_whom: tuple[str, str, str],
    before: Mapping[str, Any] | None,
    after: Mapping[str, Any] | None,
) -> None:
    """Record an act `(actor, action, subject)` in the transaction that performs it."""
    await connection.execute(
        "INSERT INTO gateway.admin_events (actor, action, subject, before, after)"
        " VALUES ($1, $2, $3, $4, $5)",
        *who_what_whom,
        _record(before),
        _record(after),
    )


async def spent(connection: Connection, scope: str, period: str) -> int:
    """Return what a scope (`t:<id>`, `k:<id>`) was charged in the present period, UTC."""
    charged: int = await connection.fetchval(_SPENT, scope, period)
    return charged


def storable(text: str) -> str:
    """Replace what PostgreSQL cannot take in a text: NUL and lone surrogates."""
    return text.encode("utf-8", "replace").decode().replace("\0", "?")


def printable(text: str) -> str:
    """Return a name for a message: one line, not long, quoted; never the text of a key."""
    if text.startswith(PREFIX):
        return "of that text"
    return "'" + "".join(c if c.isprintable() else "?" for c in text[:80]) + "'"


def shown(row: Mapping[str, Any]) -> Row:
    """Leave out what no list, event or answer may hold."""
    return {column: value for column, value in row.items() if column not in _HIDDEN}


def _unordered(value: Any) -> Any:
    return sorted(value) if isinstance(value, list) else value


def _record(row: Mapping[str, Any] | None) -> str | None:
    return None if row is None else json.dumps(shown(row), default=_plain)


def _plain(value: object) -> str:
    return value.isoformat() if isinstance(value, datetime) else str(value)


def _check_range(values: Mapping[str, Any], column: str, least: int, most: int) -> None:
    value = values.get(column)
    if value is not None and not least <= value <= most:
        raise Refused(f"must be {least} to {most}", column)


def _check_within(key: Mapping[str, Any], tenant: Mapping[str, Any], column: str) -> None:
    mine, theirs = key[column], tenant[column]
    if mine is not None and theirs is not None and mine > theirs:
        each = f" a {tenant['budget_period']}" if column == "budget" else ""
        raise Refused(f"{mine} is more than tenant {tenant['name']}'s {theirs}{each}", column)


def pick(rows: Sequence[Row], name: str, what: str) -> Row:
    """Return the one row that a name means; raises NotFound or Refused."""
    live = [row for row in rows if row.get("revoked_at") is None]
    for found in (rows, live):
        if len(found) == 1:
            return found[0]
    if not rows:
        raise NotFound(f"there is no {what} {printable(name)}", what)
    raise Refused(f"{len(rows)} {what}s are named {printable(name)}; use an id", what)
