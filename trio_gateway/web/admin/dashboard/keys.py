"""Keys: make, show once, change, rotate, disable, revoke."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from quart import Blueprint, Response, request

from trio_gateway.core.officers import Role
from trio_gateway.services.account_rows import Overtaken, Refused
from trio_gateway.services.catalog import discovered
from trio_gateway.services.key_usage import KeyUsage
from trio_gateway.services.keyring import COLUMNS
from trio_gateway.services.usage import last_days
from trio_gateway.web.admin.dashboard import charts
from trio_gateway.web.admin.dashboard.changes import changes, noted, told
from trio_gateway.web.admin.dashboard.forms import OVERLAPS, Fields, fields
from trio_gateway.web.admin.dashboard.questions import NONE, Answer, answered
from trio_gateway.web.admin.dashboard.shell import books, done, page
from trio_gateway.web.admin.dashboard.together import REDIS, together
from trio_gateway.web.admin.guard import require
from trio_gateway.web.admin.office import office

if TYPE_CHECKING:
    from datetime import datetime

    from trio_gateway.services.account_rows import Row

MONTH = 30  # days
ACTS = 10  # of the latest, on a key's page

blueprint = Blueprint("keys", __name__)


@blueprint.route("/tenants/<tenant_id>/keys/new", methods=["GET", "POST"])
async def create(tenant_id: str) -> Response:
    """Ask for a key, or make it and show it, this once."""
    require(Role.ADMIN)
    tenant = await books().accounts.show(tenant_id)
    if request.method == "GET":
        return await _form(tenant, None, {"budget_period": "month"})
    form = await fields()
    try:
        row = await books().keyring.issue(tenant["id"], form.all(_readers(form)))
    except Refused as error:
        return await _form(tenant, None, form.written, error)
    return await _once(row, tenant, "The key is made")


@blueprint.get("/keys/<key_id>")
async def show(key_id: str) -> Response:
    """Show a key; never the key itself."""
    return await _page(key_id)


async def _page(key_id: str, answer: Answer = NONE) -> Response:
    row = await books().keyring.show(key_id)
    tenant = await books().accounts.show(row["tenant_id"])
    acts = await books().reports.acts(None, ACTS, None, row["id"])
    reasons = [act["after"].get("reason") for act in acts if act["action"] == "key.revoke"]
    days, usage = last_days(MONTH), KeyUsage(office().postgres)
    label = {"label": row["name"] or row["id"]}
    used = [day | label for day in await usage.of_one(row["id"], *days)]
    return await page(
        "key.html",
        answer.status,
        chart=charts.stacked(f"Tokens charged, last {MONTH} days", used, days, "day"),
        last_used=(await usage.last_used([row["id"]])).get(row["id"]),
        answer=answer,
        key=row,
        tenant=tenant,
        acts=acts,
        overlaps=OVERLAPS,
        reason=next(iter(reasons), ""),
    )


@blueprint.route("/keys/<key_id>/edit", methods=["GET", "POST"])
async def edit(key_id: str) -> Response:
    """Show what may be changed, or change it."""
    require(Role.ADMIN)
    row = await books().keyring.show(key_id)
    tenant = await books().accounts.show(row["tenant_id"])
    if request.method == "GET":
        return await _form(tenant, row, noted(row, COLUMNS))
    form = await fields()
    try:
        opened = form.opened
        wanted = changes(opened, form.all(_readers(form, opened.get("expires_at"))))
        if wanted.values:
            await books().keyring.update(row["id"], wanted.values, seen=wanted.seen)
    except Overtaken as error:
        row = await books().keyring.show(row["id"])
        mine = noted(row, COLUMNS) | wanted.values
        return await _form(tenant, row, mine, await told(error, row["id"], row, wanted), 409)
    except Refused as error:
        return await _form(tenant, row, form.written, error)
    return done("key.update" if wanted.values else "nothing", f"/keys/{row['id']}")


@blueprint.post("/keys/<key_id>/rotate")
async def rotate(key_id: str) -> Response:
    """Give the key a new secret and show it, this once."""

    async def rotated(form: Fields) -> Response:
        row = await books().keyring.rotate(key_id, form.overlap())
        tenant = await books().accounts.show(row["tenant_id"])
        return await _once(row, tenant, "The key has a new secret")

    return await answered(rotated, partial(_page, key_id))


@blueprint.post("/keys/<key_id>/revoke")
async def revoke(key_id: str) -> Response:
    """End the key for good."""

    async def revoked(form: Fields) -> Response:
        row = await books().keyring.revoke(key_id, reason=form.text("reason"))
        return done("key.revoke", f"/keys/{row['id']}")

    return await answered(revoked, partial(_page, key_id))


@blueprint.post("/keys/<key_id>/<any(disable,enable):act>")
async def switch(key_id: str, act: str) -> Response:
    """Refuse the key for now, or take it again."""

    async def switched(_: Fields) -> Response:
        row = await getattr(books().keyring, act)(key_id)
        return done(f"key.{act}", f"/keys/{row['id']}")

    return await answered(switched, partial(_page, key_id))


@blueprint.post("/keys/<key_id>/extend")
async def extend(key_id: str) -> Response:
    """Add tokens to the key's budget until an instant."""

    async def extended(form: Fields) -> Response:
        row = await books().keyring.extend(key_id, *form.extension())
        return done("key.extend", f"/keys/{row['id']}")

    return await answered(extended, partial(_page, key_id))


@blueprint.post("/keys/<key_id>/end-extension")
async def end_extension(key_id: str) -> Response:
    """End such an increase now."""
    row = await books().keyring.end_extension(key_id)
    return done("key.end_extension", f"/keys/{row['id']}")


def _readers(form: Fields, expires_at: datetime | None = None) -> dict[str, Any]:
    return {
        **form.limits(),
        "name": partial(form.text, "name"),
        "models": form.granted,
        "expires_at": partial(form.instant, "expires_at", expires_at),
    }


async def _once(row: Row, tenant: Row, title: str) -> Response:
    return await page(
        "secret.html",
        title=title,
        secret=row["key"],
        what="key",
        whose=f"Key {row['name'] or row['id']} of tenant {tenant['name']}.",
        back=f"/keys/{row['id']}",
        section="/tenants",
        until=row["previous_expires_at"],
    )


async def _form(
    tenant: Row,
    row: Row | None,
    values: dict[str, Any],
    error: Refused | None = None,
    status: int = 400,
) -> Response:
    allowed = set(tenant["models"])
    if tenant["all_models"]:
        found, _ = await together(models=(REDIS, partial(discovered, office().redis)))
        allowed = set(found["models"] or ())
    ticked = set(values.get("models") or ())
    return await page(
        "key_form.html",
        status if error else 200,
        tenant=tenant,
        key=row,
        values=values,
        grant=values.get("grant") or ("all" if values.get("models") is None else "these"),
        ticked=ticked,
        known=sorted(ticked | allowed),
        error=error,
    )
