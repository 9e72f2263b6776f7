"""Models: what discovery found, and what the operator decided for each."""

from __future__ import annotations

from functools import partial
from typing import Any

from quart import Blueprint, Response, request

from trio_gateway.core.models import is_cloud
from trio_gateway.core.officers import Role
from trio_gateway.services.account_rows import Refused
from trio_gateway.services.catalog import discovered
from trio_gateway.web.admin.dashboard.forms import fields
from trio_gateway.web.admin.dashboard.paging import argument
from trio_gateway.web.admin.dashboard.shell import books, done, page
from trio_gateway.web.admin.dashboard.together import POSTGRES, REDIS, together
from trio_gateway.web.admin.guard import require
from trio_gateway.web.admin.office import office

UNSET: dict[str, Any] = {"blocked": False, "milli_weight": 1000, "num_ctx": None, "digest": None}

blueprint = Blueprint("models", __name__)


@blueprint.get("/models")
async def listing() -> Response:
    """Show every model that was found or has a policy."""
    rows, missing = await _rows()
    return await page("models.html", 503 if missing else 200, rows=rows, missing=missing)


@blueprint.route("/models/edit", methods=["GET", "POST"])
async def edit() -> Response:
    """Show one model's policy, or change it: all of it, or nothing."""
    require(Role.ADMIN)
    if request.method == "GET":
        name = argument("name")
        rows, _ = await _rows()
        row = next((each for each in rows if each["name"] == name), {"name": name, **UNSET})
        return await page("model_form.html", model=row, values=row, error=None)
    form = await fields()
    try:
        name = form.model("name")
        values = {
            "blocked": form.wanted("blocked"),
            "milli_weight": form.weight("weight"),
            "num_ctx": form.whole("num_ctx", 1, 2**31 - 1),
            "digest": form.digest("digest"),
        }
    except Refused as error:
        row = {"name": form.written.get("name", ""), **UNSET}
        return await page("model_form.html", 400, model=row, values=form.written, error=error)
    await books().models.set(name, values, "model.update")
    return done("model.change", "/models")


@blueprint.post("/models/<any(block,unblock):act>")
async def switch(act: str) -> Response:
    """Refuse a model to everyone, or no more."""
    name = (await fields()).model("name")
    await books().models.set(name, {"blocked": act == "block"}, f"model.{act}")
    return done("model.change", "/models")


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
