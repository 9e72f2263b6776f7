"""/v1/models: the catalog in OpenAI's shape."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Any

import orjson

from trio_gateway.core.models import InvalidModelName, canonical

if TYPE_CHECKING:
    from collections.abc import Iterable

    from trio_gateway.core.domain import CatalogModel

CONTENT_TYPE = "application/json"


def render_models(models: Iterable[CatalogModel]) -> bytes:
    """Encode the list, in the order given; without a model its `data` is `[]`."""
    entries = [_entry(model, _displayed(model)) for model in models]
    return orjson.dumps({"object": "list", "data": entries})


def render_model(model: CatalogModel, requested: str) -> bytes:
    """Encode one model under the name that the caller asked for."""
    return orjson.dumps(_entry(model, requested))


def _entry(model: CatalogModel, name: str) -> dict[str, Any]:
    return {
        "id": name,
        "object": "model",
        "created": _seconds(model.raw.get("modified_at")),
        "owned_by": _owner(model.name),
    }


def _displayed(model: CatalogModel) -> str:
    name = model.raw.get("name")
    try:
        same = isinstance(name, str) and canonical(name).full == model.name
    except InvalidModelName:
        same = False
    return str(name) if same else model.name


def _owner(name: str) -> str:
    try:
        return canonical(name).namespace
    except InvalidModelName:
        return "library"


def _seconds(moment: Any) -> int:
    """Read RFC 3339 as unix seconds; what cannot be read, or lies before 1970, is 0."""
    try:
        return max(0, int(datetime.fromisoformat(moment).timestamp()))
    except (TypeError, ValueError, OverflowError):
        return 0
