"""What several OpenAI routes read alike."""

from __future__ import annotations

from typing import Any

from trio_gateway.core.errors import ModelNotFound
from trio_gateway.core.models import InvalidModelName, canonical
from trio_gateway.dialects import fields


def read_model(body: dict[str, Any]) -> tuple[str, str]:
    """Read the model as the caller wrote it, and its canonical name.

    Raises InvalidCall where there is none, ModelNotFound where none could have that name.
    """
    requested = fields.required(fields.text(body, "model") or None, "model")
    try:
        return requested, canonical(requested).full
    except InvalidModelName:
        raise ModelNotFound from None


def refuse_more_than_one(body: dict[str, Any], key: str) -> None:
    """Raise InvalidCall where the caller wants several answers; upstream gives one."""
    if fields.integer(body, key, low=1) not in (None, 1):
        raise fields.refusal(key, "must be 1; one answer is given to each call")
