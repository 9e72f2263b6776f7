"""Keys of all tenants: one found by what is known of it, or lists by what became of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

from quart import Blueprint, Response, redirect, url_for

from trio_gateway.core.keys import PREFIX
from trio_gateway.services.key_search import LISTS, KeySearch
from trio_gateway.services.key_usage import KeyUsage
from trio_gateway.web.admin.dashboard.paging import PAGE, argument, one_of, place_in, place_of
from trio_gateway.web.admin.dashboard.shell import page
from trio_gateway.web.admin.office import office

if TYPE_CHECKING:
    from collections.abc import Sequence

TITLES = {
    "": "All",
    "active": "Active",
    "expiring": "Expire within 14 days",
    "expired": "Expired",
    "disabled": "Disabled",
    "revoked": "Revoked",
}

blueprint = Blueprint("key_list", __name__)


@blueprint.get("/keys")
async def listing() -> Response:
    """Show keys of every tenant."""
    text, state, search = argument("find"), one_of("state", LISTS), KeySearch(office().postgres)
    if text.startswith(PREFIX):
        # A whole key is a secret, and has no place in an address.
        text = text.removeprefix(PREFIX).partition("-")[0]
        return cast("Response", redirect(url_for(".listing", find=text), 303))
    after = argument("after")
    if text:
        rows = await search.find(text, PAGE + 1, after or None)
    else:
        rows = await search.listing(state, PAGE + 1, place_in("after"))
    return await page(
        "keys.html",
        rows=rows[:PAGE],
        used=await KeyUsage(office().postgres).last_used([row["id"] for row in rows[:PAGE]]),
        find=text,
        state=state,
        ended=not text and state in {"disabled", "revoked"},
        titles=TITLES,
        after=after,
        more=_more(rows, by_id=bool(text)),
    )


def _more(rows: Sequence[dict[str, Any]], *, by_id: bool) -> str | None:
    if len(rows) <= PAGE:
        return None
    last = rows[PAGE - 1]
    return str(last["id"]) if by_id else place_of(last["listed_at"], last["id"])
