"""Models: what discovery found, and what the operator decided for each."""

from __future__ import annotations

from functools import partial
from typing import Any

from quart import Blueprint, Response, request

from trio_gateway.core.models import is_cloud
from trio_gateway.core.officers import Role
from trio_gateway.services.account_rows import Overtaken, Refused
from trio_gateway.services.catalog import discovered
from trio_gateway.services.policies import COLUMNS, UNSET
from trio_gateway.web.admin.dashboard.changes import changes, noted, told
from trio_gateway.web.admin.dashboard.forms import Fields, fields
from trio_gateway.web.admin.dashboard.paging import argument
from trio_gateway.web.admin.dashboard.shell import books, done, page
from trio_gateway.web.admin.dashboard.together import POSTGRES, REDIS, together
from trio_gateway.web.admin.guard import require
from trio_gateway.web.admin.office import office

blueprint = Blueprint("models", __name__)


@blueprint.get("/models")
async def listing() -> Response:
    """Show every model that was found or has a policy."""
    rows, missing = await _rows()
    return await page("models.html", 503 if missing else 200, rows=rows, missing=missing)


@blueprint.route("/models/edit", methods=["GET", "POST"])
async def edit() -> Response:
    """Show one model's policy, or change it."""
    require(Role.ADMIN)
    if request.method == "GET":
        row = await _row(argument("name"))
        return await _form(row, noted(row, COLUMNS))
    form = await fields()
    try:
        name = form.model("name")
        wanted = changes(form.opened, form.all(_readers(form)))
        if wanted.values:
            await books().models.set(name, wanted.values, "model.update", wanted.seen)
    except Overtaken as error:
        row = await _row(name)
        mine = noted(row, COLUMNS) | wanted.values
        return await _form(row, mine, await told(error, name, row, wanted), 409)
    except Refused as error:
        return await _form(await _row(form.written.get("name", "")), form.written, error)
    return done("model.change" if wanted.values else "nothing", "/models")


@blueprint.post("/models/<any(block,unblock):act>")
async def switch(act: str) -> Response:
    """Refuse a model to everyone, or no more."""
    name = (await fields()).model("name")
    await books().models.set(name, {"blocked": act == "block"}, f"model.{act}")
    return done("model.change", "/models")


def _readers(form: Fields) -> dict[str, Any]:
    return {
        "blocked": partial(form.wanted, "blocked"),
        "milli_weight": partial(form.weight, "weight"),
        "num_ctx": partial(form.whole, "num_ctx", 1, 2**31 - 1),
        "digest": partial(form.digest, "digest"),
    }


async def _form(
    row: dict[str, Any], values: dict[str, Any], error: Refused | None = None, status: int = 400
) -> Response:
    status = status if error else 200
    return await page("model_form.html", status, model=row, values=values, error=error)


async def _row(name: str) -> dict[str, Any]:
    rows, _ = await _rows()
    return next((row for row in rows if row["name"] == name), {"name": name, **UNSET})


async def _rows() -> tuple[list[dict[str, Any]], list[str]]:
    found, missing = await together(
        policies=(POSTGRES, books().models.listing),
        there=(REDIS, partial(discovered, office().redis)),
    )
    policies = {row["name"]: row for row in found["policies"] or ()}
    there: dict[str, str] | None = found["there"]
    rows = []
    for name in sorted(policies.keys() | (there or {}).keys()):
        row = {**UNSET, **policies.get(name, {}), "name": name, "cloud": is_cloud(name)}
        installed = None if there is None else name in there
        rows.append({**row, "installed": installed, "installed_digest": (there or {}).get(name)})
    return rows, missing
