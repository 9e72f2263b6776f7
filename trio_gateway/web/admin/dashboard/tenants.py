"""Tenants: list, add, show, change, extend, disable, delete."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from quart import Blueprint, Response, request

from trio_gateway.core.officers import Role
from trio_gateway.services.account_rows import Overtaken, Refused
from trio_gateway.services.accounts import COLUMNS
from trio_gateway.services.catalog import discovered
from trio_gateway.services.usage import Usage, last_days
from trio_gateway.web.admin.dashboard import charts
from trio_gateway.web.admin.dashboard.changes import changes, noted, told
from trio_gateway.web.admin.dashboard.forms import Fields, fields
from trio_gateway.web.admin.dashboard.paging import PAGE, argument
from trio_gateway.web.admin.dashboard.questions import NONE, Answer, answered
from trio_gateway.web.admin.dashboard.shell import books, done, page
from trio_gateway.web.admin.dashboard.together import POSTGRES, REDIS, together
from trio_gateway.web.admin.guard import require
from trio_gateway.web.admin.office import office

if TYPE_CHECKING:
    from trio_gateway.services.account_rows import Row

MONTH = 30  # days
ACTS = 10  # of the latest, on a tenant's page

blueprint = Blueprint("tenants", __name__)


@blueprint.get("/tenants")
async def listing() -> Response:
    """Show tenants by name."""
    match, after = argument("match"), argument("after")
    rows = await books().accounts.listing(match, PAGE + 1, after)
    last = rows[PAGE - 1]["name"] if len(rows) > PAGE else None
    return await page("tenants.html", rows=rows[:PAGE], match=match, after=after, more=last)


@blueprint.route("/tenants/new", methods=["GET", "POST"])
async def create() -> Response:
    """Ask for a tenant, or add it."""
    require(Role.ADMIN)
    if request.method == "GET":
        return await _form(None, {"budget_period": "month", "weight_share": 1})
    form = await fields()
    try:
        values = form.all({"name": partial(form.text, "name", 63), **_readers(form)})
        row = await books().accounts.create(values.pop("name"), _columns(values))
    except Refused as error:
        return await _form(None, form.written, error)
    return done("tenant.create", f"/tenants/{row['id']}")


@blueprint.get("/tenants/<tenant_id>")
async def show(tenant_id: str) -> Response:
    """Show a tenant, its keys, and what it used."""
    return await _page(tenant_id)


async def _page(tenant_id: str, answer: Answer = NONE) -> Response:
    row = await books().accounts.show(tenant_id)
    match, after, days = argument("match"), argument("after"), last_days(MONTH)
    usage = Usage(office().postgres)
    found, missing = await together(
        keys=(
            POSTGRES,
            partial(books().keyring.listing, row["id"], match, PAGE + 1, after or None),
        ),
        daily=(POSTGRES, partial(usage.series, "model", *days, tenant_id=row["id"], most=7)),
        acts=(POSTGRES, partial(books().reports.acts, None, ACTS, None, row["id"])),
    )
    keys = found["keys"] or []
    return await page(
        "tenant.html",
        503 if missing else answer.status,
        missing=missing,
        answer=answer,
        tenant=row,
        keys=keys[:PAGE],
        match=match,
        after=after,
        more=keys[PAGE - 1]["id"] if len(keys) > PAGE else None,
        chart=found["daily"] is not None
        and charts.stacked("Tokens by model, last 30 days", found["daily"], days, "day"),
        acts=found["acts"] or [],
    )


@blueprint.route("/tenants/<tenant_id>/edit", methods=["GET", "POST"])
async def edit(tenant_id: str) -> Response:
    """Show what may be changed, or change it."""
    require(Role.ADMIN)
    row = await books().accounts.show(tenant_id)
    if request.method == "GET":
        return await _form(row, noted(row, COLUMNS))
    form = await fields()
    try:
        wanted = changes(form.opened, _columns(form.all(_readers(form))))
        if wanted.values:
            await books().accounts.update(row["id"], wanted.values, wanted.seen)
    except Overtaken as error:
        row = await books().accounts.show(row["id"])
        mine = noted(row, COLUMNS) | wanted.values
        return await _form(row, mine, await told(error, row["id"], row, wanted), 409)
    except Refused as error:
        return await _form(row, form.written, error)
    return done("tenant.update" if wanted.values else "nothing", f"/tenants/{row['id']}")


@blueprint.post("/tenants/<tenant_id>/<any(disable,enable,delete):act>")
async def switch(tenant_id: str, act: str) -> Response:
    """Disable, enable or delete a tenant."""

    async def switched(_: Fields) -> Response:
        row = await getattr(books().accounts, act)(tenant_id)
        return done(f"tenant.{act}", "/tenants" if act == "delete" else f"/tenants/{row['id']}")

    return await answered(switched, partial(_page, tenant_id))


@blueprint.post("/tenants/<tenant_id>/extend")
async def extend(tenant_id: str) -> Response:
    """Add tokens to the budget until an instant."""

    async def extended(form: Fields) -> Response:
        row = await books().accounts.extend(tenant_id, *form.extension())
        return done("tenant.extend", f"/tenants/{row['id']}")

    return await answered(extended, partial(_page, tenant_id))


@blueprint.post("/tenants/<tenant_id>/end-extension")
async def end_extension(tenant_id: str) -> Response:
    """End such an increase now."""
    row = await books().accounts.end_extension(tenant_id)
    return done("tenant.end_extension", f"/tenants/{row['id']}")


def _readers(form: Fields) -> dict[str, Any]:
    return {
        **form.limits(),
        "models": form.granted,
        "allow_cloud": partial(form.wanted, "allow_cloud"),
        "weight_share": partial(form.needed, "weight_share", 1, 1000),
    }


def _columns(values: dict[str, Any]) -> dict[str, Any]:
    models = values["models"]
    return {**values, "all_models": models is None, "models": models or []}


async def _form(
    row: Row | None, values: dict[str, Any], error: Refused | None = None, status: int = 400
) -> Response:
    found, _ = await together(models=(REDIS, partial(discovered, office().redis)))
    ticked = set(values.get("models") or ())
    return await page(
        "tenant_form.html",
        status if error else 200,
        tenant=row,
        values=values,
        grant=values.get("grant") or ("all" if values.get("all_models") else "these"),
        ticked=ticked,
        known=sorted(ticked | set(found["models"] or ())),
        error=error,
    )
