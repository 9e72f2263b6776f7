"""/v1/models, one and all."""

from __future__ import annotations

from typing import Any

import orjson
import pytest
from openai.types import Model

from trio_gateway.core.domain import CatalogModel
from trio_gateway.dialects.openai_models import render_model, render_models


def model(canonical: str, **raw: Any) -> CatalogModel:
    return CatalogModel(name=canonical, digest="d", remote=False, raw=raw)


def test_models_are_listed_in_their_order() -> None:
    """The golden list: owner is the namespace, the date is modified_at, names are upstream's."""
    listed = [
        model("qwen3:8b", name="Qwen3:8b", modified_at="2025-01-02T03:04:05.123456789+01:00"),
        model("acme/tiny:latest", name="acme/tiny:latest", modified_at="2024-01-01T00:00:00Z"),
    ]
    assert orjson.loads(render_models(listed)) == {
        "object": "list",
        "data": [
            {"id": "Qwen3:8b", "object": "model", "created": 1735783445, "owned_by": "library"},
            {
                "id": "acme/tiny:latest",
                "object": "model",
                "created": 1704067200,
                "owned_by": "acme",
            },
        ],
    }


def test_no_models_are_an_empty_list() -> None:
    """Delta 19: `[]`, not null."""
    assert render_models([]) == b'{"object":"list","data":[]}'


def test_one_model_bears_the_name_it_was_asked_by() -> None:
    """Delta 19: a name with a slash among them."""
    parsed = orjson.loads(render_model(model("acme/tiny:latest"), "acme/tiny"))
    Model.model_validate(parsed)
    assert parsed == {"id": "acme/tiny", "object": "model", "created": 0, "owned_by": "acme"}
    assert orjson.loads(render_model(model("a//b"), "a//b"))["owned_by"] == "library"


@pytest.mark.parametrize("moment", ["", "yesterday", None, 5, "0001-01-01T00:00:00Z"])
def test_a_date_that_cannot_be_read_is_zero(moment: Any) -> None:
    """Clients want an integer, whatever upstream says."""
    parsed = orjson.loads(render_models([model("m:latest", modified_at=moment)]))
    assert parsed["data"][0]["created"] == 0


@pytest.mark.parametrize("name", [None, 3, "other:latest", "a//b"])
def test_a_name_that_is_not_the_models_own_is_not_shown(name: Any) -> None:
    """The canonical name stands in."""
    assert (
        orjson.loads(render_models([model("m:latest", name=name)]))["data"][0]["id"] == "m:latest"
    )
