"""Rows of `gateway.batches`, and what they mean."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import orjson

from trio_gateway.core.batches import Batch, LineError, Status

_PLAIN = tuple(
    field.name
    for field in fields(Batch)
    if field.name not in {"status", "metadata", "errors", "models"}
)
COLUMNS = ", ".join((*_PLAIN, "status", "metadata", "errors", "models"))  # for SELECT, RETURNING


def batch(row: Any) -> Batch:
    """Read a row, a mapping, that has COLUMNS."""
    metadata, errors = row["metadata"], row["errors"]
    return Batch(
        **{name: row[name] for name in _PLAIN},
        status=Status(row["status"]),
        metadata=None if metadata is None else orjson.loads(metadata),
        errors=None if errors is None else [LineError(**error) for error in orjson.loads(errors)],
        models=tuple(row["models"]),
    )
