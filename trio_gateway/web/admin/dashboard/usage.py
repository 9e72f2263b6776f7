"""Usage over time, drawn and in figures, and the same as CSV."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date  # noqa: TC003 - read by pydantic
from typing import TYPE_CHECKING, Any, cast

from quart import Blueprint, Response

from trio_gateway.services.account_rows import NotFound, Refused
from trio_gateway.services.key_usage import KeyUsage
from trio_gateway.services.tenant_names import tenant_names
from trio_gateway.services.usage import Usage
from trio_gateway.web.admin.api.exports import export
from trio_gateway.web.admin.api.shapes import Answer
from trio_gateway.web.admin.api.usage import UsageRow
from trio_gateway.web.admin.dashboard import charts
from trio_gateway.web.admin.dashboard.named import names_of_deleted
from trio_gateway.web.admin.dashboard.paging import argument, one_of
from trio_gateway.web.admin.dashboard.shell import books, page
from trio_gateway.web.admin.dashboard.spans import Span, offered, span_of
from trio_gateway.web.admin.office import office

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Sequence

    from trio_gateway.services.usage import By

BYS = {"model": "Model", "tenant": "Tenant", "key": "Key", "outcome": "Outcome"}
CHARGED = "charged_tokens"  # all that is summed by key
COLUMNS = {
    CHARGED: "tokens charged",
    "prompt_tokens": "prompt tokens",
    "completion_tokens": "output tokens",
    "requests": "requests",
    "failures": "failures",
}
SERIES = 7
MOST_SERIES = 1000  # in an export
SUMS = ("requests", "failures", "prompt_tokens", "completion_tokens", "charged_tokens")

blueprint = Blueprint("usage", __name__)


@dataclass(frozen=True, slots=True)
class Asked:
    """What the address asks for; `tenant` is a name or an id, or empty."""

    span: Span
    by: str
    what: str
    tenant: str


class KeyDay(Answer):
    """What one key was charged on one day."""

    at: date
    name: str | None
    label: str | None
    charged_tokens: int


@blueprint.get("/usage")
async def show() -> Response:
    """Draw one span by one thing."""
    asked = _asked()
    rows, tenant, error = list[Any](), None, None
    try:
        rows, tenant = await _read(asked, SERIES)
    except Refused as fault:
        error = fault
    what = COLUMNS[asked.what]
    span = asked.span.title.replace("Last", "last")
    title = f"{what.capitalize()} by {BYS[asked.by].lower()}, {span}"
    return await page(
        "usage.html",
        200 if error is None else 404 if isinstance(error, NotFound) else 400,
        asked=asked,
        tenant=tenant,
        spans=[(each.name, each.title) for each in offered()],
        bys=BYS,
        columns=COLUMNS,
        chart=charts.stacked(title, rows, asked.span.bounds, asked.span.unit, asked.what, what),
        rows=_summed(rows),
        error=error,
    )


@blueprint.get("/usage.csv")
async def sums() -> Response:
    """Send the same sums, a row for each hour or day and name."""
    asked = _asked()
    rows, _ = await _read(asked, MOST_SERIES)

    async def once() -> AsyncGenerator[Sequence[Any], None]:
        yield rows

    shape = KeyDay if asked.by == "key" else UsageRow
    name = f"usage-by-{asked.by}-{asked.span.name}"
    return await export(name, shape, "csv", once(), marked=True)


def _asked() -> Asked:
    by = one_of("by", tuple(BYS))
    what = one_of("what", tuple(COLUMNS))
    return Asked(
        span=span_of(argument("span") or "30d"),
        by=by,
        what=CHARGED if by == "key" else what,
        tenant=argument("tenant"),
    )


async def _read(asked: Asked, most: int) -> tuple[list[dict[str, Any]], Any]:
    """Return the rows, and the tenant if they are of one. Raises Refused."""
    tenant = await books().accounts.show(asked.tenant) if asked.tenant else None
    unit = asked.span.unit
    if asked.by != "key":
        owner = None if tenant is None else tenant["id"]
        rows = await Usage(office().postgres).series(
            cast("By", asked.by), *asked.span.bounds, unit=unit, tenant_id=owner, most=most
        )
        return await _say_who_is_gone(rows) if asked.by == "tenant" else rows, tenant
    if tenant is None:
        raise Refused("is needed: usage by key is of one tenant", "tenant")
    if unit == "hour":
        raise Refused("must be of days: usage by key is summed by the day", "span")
    rows = await KeyUsage(office().postgres).series(tenant["id"], *asked.span.bounds, most=most)
    return rows, tenant


async def _say_who_is_gone(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Mark the rows of deleted tenants as `gone`, and label them by the name that they had."""
    ids = {row["name"] for row in rows if row["name"] is not None}
    gone = ids - (await tenant_names(office().postgres, ids)).keys()
    names = await names_of_deleted(gone)
    labels = {each: f"{names.get(each, each)} (deleted)" for each in gone}
    return [
        row | {"label": labels.get(row["name"], row["label"]), "gone": row["name"] in gone}
        for row in rows
    ]


def _summed(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Sum over time, the greatest first, the rest last."""
    sums: dict[str | None, dict[str, Any]] = {}
    for row in rows:
        label = charts.REST if row["name"] is None else row["label"] or row["name"]
        empty = {"name": row["name"], "label": label, "gone": row.get("gone", False)}
        found = sums.setdefault(row["name"], {**empty, **dict.fromkeys(SUMS, 0)})
        for name in SUMS:
            found[name] += row.get(name, 0)
    return sorted(sums.values(), key=lambda row: (row["name"] is None, -row["charged_tokens"]))
