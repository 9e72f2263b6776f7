"""/admin/v1/models: what was discovered, and what the operator decides for each model."""

from datetime import datetime
from decimal import Decimal
from typing import Annotated, Any

from pydantic import AfterValidator, Field, TypeAdapter, ValidationError

from trio_gateway.core.errors import StoreUnavailable
from trio_gateway.services.account_rows import NotFound, printable
from trio_gateway.services.catalog import discovered
from trio_gateway.web.admin.api.sections import Section, books
from trio_gateway.web.admin.api.shapes import Answer, Change, ModelName, Whole
from trio_gateway.web.admin.office import office

section = Section("models")

_UNSET = {"blocked": False, "milli_weight": 1000, "num_ctx": None, "digest": None}


def _digest(text: str) -> str:
    return text.lower().removeprefix("sha256:")


def _thousandths(weight: float) -> float:
    if Decimal(repr(weight)) * 1000 % 1:
        raise ValueError("must have at most three decimals")
    return weight


class ModelChange(Change):
    """What can be decided for a model; null lets go of a pin."""

    blocked: bool = False
    weight: Annotated[float, Field(ge=0, le=1000), AfterValidator(_thousandths)] = 1.0
    num_ctx: Annotated[int, Field(ge=1, le=2**31 - 1)] | None = None
    digest: (
        Annotated[
            str, Field(pattern=r"^([sS][hH][aA]256:)?[0-9a-fA-F]{64}$"), AfterValidator(_digest)
        ]
        | None
    ) = None

    def columns(self) -> dict[str, Any]:
        """Return what was named as columns, the weight in thousandths."""
        values = self.given()
        if "weight" in values:
            values["milli_weight"] = round(values.pop("weight") * 1000)
        return values

    @property
    def act(self) -> str:
        """What the audit calls this change."""
        names = self.model_fields_set
        if names == {"blocked"}:
            return "block" if self.blocked else "unblock"
        if names == {"weight"}:
            return "weight"
        return "pin" if names <= {"num_ctx", "digest"} else "update"


class Model(Answer):
    """A model; `installed` is null where Redis does not say what was discovered."""

    name: str
    installed: bool | None
    installed_digest: str | None
    blocked: bool
    weight: float
    num_ctx: int | None
    digest: str | None
    updated_at: datetime | None


@section.get("/models", Whole[Model])
async def list_models() -> dict[str, Any]:
    """List the models that were discovered, and those that have a policy."""
    found = await _discovered()
    policies = {row["name"]: row for row in await books().models.listing()}
    names = sorted(policies.keys() | (found or {}).keys())
    return {"data": [_model(name, policies.get(name), found) for name in names]}


@section.get("/models/<path:model>", Model)
async def show_model(model: str) -> Any:
    """Show a model, by any spelling of its name."""
    name = _canonical(model)
    found = await _discovered()
    policies = {row["name"]: row for row in await books().models.listing()}
    if name not in policies and name not in (found or {}):
        raise NotFound(f"there is no model {printable(name)}, and no policy for it", "model")
    return _model(name, policies.get(name), found)


@section.patch("/models/<path:model>", Model, body=ModelChange)
async def change_model(model: str, body: ModelChange) -> Any:
    """Block or unblock a model, weigh its tokens, pin its context size or digest.

    A policy may be set before a model of the name is there. No grant beats a block.
    """
    name = _canonical(model)
    row = await books().models.set(name, body.columns(), f"model.{body.act}")
    return _model(name, row, await _discovered())


_NAME: TypeAdapter[str] = TypeAdapter(ModelName)


def _canonical(name: str) -> str:
    try:
        return _NAME.validate_python(name)
    except ValidationError:
        raise NotFound("there is no model of that name", "model") from None


async def _discovered() -> dict[str, str] | None:
    try:
        return await discovered(office().redis)
    except StoreUnavailable:
        return None


def _model(name: str, policy: Any, found: dict[str, str] | None) -> dict[str, Any]:
    row = {"updated_at": None, **_UNSET, **(policy or {}), "name": name}
    return {
        **row,
        "weight": row["milli_weight"] / 1000,
        "installed": None if found is None else name in found,
        "installed_digest": (found or {}).get(name),
    }
