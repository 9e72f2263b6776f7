"""Native lists of models, rebuilt so that they show a caller its own models and no secrets.

Left out on purpose: the host and name of a remote model, blob paths (`parent_model` can be
one), licence, modelfile, template, system prompt and parameters.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import orjson

from trio_gateway.core.models import InvalidModelName, canonical

if TYPE_CHECKING:
    from collections.abc import Container, Iterable

    from trio_gateway.core.domain import CatalogModel

Json = dict[str, Any]

_SCALARS = (int, float, bool, str)
_DETAILS = ("format", "family", "parameter_size", "quantization_level")
_DETAIL_COUNTS = ("context_length", "embedding_length")
_LISTED = ("modified_at", "size", "digest")
_RUNNING = ("size", "digest", "expires_at", "size_vram", "context_length")
_TOKENIZER = "tokenizer."
_MAX_TEXT = 256  # characters of a string in `model_info`


def render_tags(models: Iterable[CatalogModel]) -> bytes:
    """Return the answer of /api/tags for these models, in their order."""
    return orjson.dumps({"models": [_tag(model) for model in models]})


def filter_ps(raw: Json, allowed_names: Container[str]) -> bytes:
    """Return upstream's /api/ps with only the models whose canonical name is allowed."""
    found = raw.get("models")
    entries = found if type(found) is list else []
    return orjson.dumps(
        {
            "models": [
                {**_named(entry, entry["name"]), **_chosen(entry, _RUNNING)}
                for entry in entries
                if type(entry) is dict and _canonical(entry.get("name")) in allowed_names
            ]
        }
    )


def filter_show(raw: Json) -> bytes:
    """Return upstream's /api/show with what a caller may know: what the model is and can do."""
    answer: Json = {"details": _details(raw), "model_info": _model_info(raw.get("model_info"))}
    return orjson.dumps({**answer, **_capabilities(raw), **_chosen(raw, ("modified_at",))})


def _tag(model: CatalogModel) -> Json:
    name = model.raw.get("name")
    shown: str = name if name and _canonical(name) == model.name else model.name
    return {
        **_named(model.raw, shown),
        **_chosen(model.raw, _LISTED),
        **_capabilities(model.raw),
    }


def _named(entry: Json, name: str) -> Json:
    return {"name": name, "model": name, "details": _details(entry)}


def _chosen(entry: Json, keys: tuple[str, ...]) -> Json:
    return {key: entry[key] for key in keys if type(entry.get(key)) in _SCALARS}


def _details(entry: Json) -> Json:
    given = entry.get("details")
    source = given if type(given) is dict else {}
    found: Json = {"parent_model": ""}
    found.update((key, _text(source.get(key))) for key in _DETAILS)
    found["families"] = _texts(source.get("families"))
    found.update(_chosen(source, _DETAIL_COUNTS))
    return found


def _capabilities(entry: Json) -> Json:
    found = entry.get("capabilities")
    return {"capabilities": _texts(found)} if type(found) is list else {}


def _model_info(info: Any) -> Json:
    """Return the small facts: numbers and short words, no path, address or tokenizer table."""
    if type(info) is not dict:
        return {}
    return {
        key: value
        for key, value in info.items()
        if type(value) in _SCALARS and not key.startswith(_TOKENIZER) and not _is_place(value)
    }


def _is_place(value: Any) -> bool:
    return type(value) is str and (len(value) > _MAX_TEXT or "/" in value or "\\" in value)


def _text(value: Any) -> str:
    return value if type(value) is str else ""


def _texts(value: Any) -> list[str]:
    return [item for item in value if type(item) is str] if type(value) is list else []


def _canonical(name: Any) -> str | None:
    try:
        return canonical(name).full if type(name) is str else None
    except InvalidModelName:
        return None
