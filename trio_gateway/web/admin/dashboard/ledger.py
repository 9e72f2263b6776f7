"""The ledger: calls that are over, one by one, with what was booked for each.

A model or an outcome is on no index. Both are searched for within a month alone, so that no
look reads the whole of a ledger; what else may be asked for leads straight to its rows.
"""

from __future__ import annotations

import re
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, cast
from urllib.parse import quote

from quart import Blueprint, Response, redirect

from trio_gateway.core.domain import Outcome
from trio_gateway.core.models import InvalidModelName, canonical
from trio_gateway.services.account_rows import NotFound, Refused
from trio_gateway.services.ledger_pages import LedgerFilter, LedgerPages
from trio_gateway.web.admin.api.exports import STEP, export
from trio_gateway.web.admin.api.ledger import LedgerRow
from trio_gateway.web.admin.api.owners import key_id, tenant_id
from trio_gateway.web.admin.dashboard.paging import (
    PAGE,
    argument,
    instant_in,
    one_of,
    place_in,
    place_of,
)
from trio_gateway.web.admin.dashboard.shell import page
from trio_gateway.web.admin.office import office

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Sequence

    from trio_gateway.web.admin.api.exports import Format

SEARCHED = timedelta(days=31)  # in which a model or an outcome is searched for
ASKED = ("tenant", "key", "model", "outcome", "since", "until")
OUTCOMES = {
    Outcome.COMPLETED: "it came to its end",
    Outcome.ABORTED: "the client left, or stopped reading",
    Outcome.REVOKED: "it was cut with its key",
    Outcome.CUT: "it was ended at its ceiling, or by an operator",
    Outcome.TIMEOUT: "it passed a limit of time",
    Outcome.UPSTREAM_ERROR: "it broke at Ollama",
    Outcome.REFUSED: "it was admitted and never sent on: the queue was full, or too slow",
    Outcome.DRAINED: "it was cut by a shutdown",
    Outcome.LOST: "it died with its worker, and was found later",
}
BASES = {
    "final": "the counts that Ollama gave at the end",
    "partial": "an estimate of the prompt, and the output that was seen",
    "estimated": "an estimate of the prompt; no output was seen",
    "none": "nothing: Ollama did no work for it",
}
_WORD = re.compile(r"[A-Za-z0-9_-]{1,100}")

blueprint = Blueprint("ledger", __name__)


@blueprint.get("/ledger")
async def listing() -> Response:
    """Show calls, the newest first, or lead to the one whose id is asked for."""
    if request_id := argument("request_id"):
        return cast("Response", redirect(f"/ledger/{quote(request_id, safe='')}", 303))
    rows, error, wanted = list[Any](), None, LedgerFilter()
    try:
        wanted = await _wanted()
        rows = await LedgerPages(office().postgres).listing(wanted, PAGE + 1, place_in("before"))
    except Refused as fault:
        error = fault
    return await page(
        "ledger.html",
        200 if error is None else 404 if isinstance(error, NotFound) else 400,
        rows=rows[:PAGE],
        asked={name: argument(name) for name in ASKED if argument(name)},
        wanted=wanted,
        outcomes=[("", "all"), *((each, each.replace("_", " ")) for each in Outcome)],
        months=SEARCHED.days,
        before=argument("before"),
        more=_more(rows),
        error=error,
    )


@blueprint.get("/ledger/<request_id>")
async def show(request_id: str) -> Response:
    """Show one call, by the `x-request-id` of its answer."""
    rows = []
    if _WORD.fullmatch(request_id):
        rows = await LedgerPages(office().postgres).listing(LedgerFilter(request_id=request_id), 1)
    if not rows:
        return await page("call.html", 404, call=None)
    (row,) = rows
    return await page("call.html", call=row, outcome=OUTCOMES, basis=BASES)


@blueprint.get("/ledger.<any(csv,jsonl):kind>")
async def send(kind: Format) -> Response:
    """Send every call that is asked for, the newest first."""
    wanted = await _wanted()
    days = [f"{at:%Y-%m-%d}" for at in (wanted.since, wanted.until) if at is not None]
    name = "-".join(["ledger", *days])
    return await export(name, LedgerRow, kind, _pages(wanted), marked=True)


async def _pages(wanted: LedgerFilter) -> AsyncGenerator[Sequence[Any], None]:
    pages, before = LedgerPages(office().postgres), None
    while True:
        rows = await pages.listing(wanted, STEP, before)
        yield rows
        if len(rows) < STEP:
            return
        before = (rows[-1]["started_at"], rows[-1]["request_id"])


async def _wanted() -> LedgerFilter:
    """Return what the address asks for. Raises Refused."""
    since, until = instant_in("since"), instant_in("until")
    if since and until and since >= until:
        raise Refused("must be before the other time", "since")
    tenant = argument("tenant") or None
    wanted = LedgerFilter(
        tenant_id=await tenant_id(tenant),
        key_id=await key_id(argument("key") or None, tenant),
        model=_model(argument("model")),
        outcome=one_of("outcome", ("", *Outcome)) or None,
        since=since,
        until=until,
    )
    if wanted.model is None and wanted.outcome is None:
        return wanted
    latest = until or datetime.now(UTC)
    if since is None:
        return replace(wanted, since=latest - SEARCHED)
    if latest - since > SEARCHED + timedelta(days=1):
        raise Refused(
            f"a model or an outcome is searched for in at most {SEARCHED.days} days", "since"
        )
    return wanted


def _model(name: str) -> str | None:
    try:
        return canonical(name).full if name else None
    except InvalidModelName as error:
        raise Refused(str(error), "model") from None


def _more(rows: Sequence[Any]) -> str | None:
    if len(rows) <= PAGE:
        return None
    last = rows[PAGE - 1]
    return place_of(last["started_at"], last["request_id"])
