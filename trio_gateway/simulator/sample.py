"""A value that fits a JSON Schema: the simulated model's idea of structured output."""

from __future__ import annotations

from typing import Any

_PLAIN: dict[str, Any] = {
    "string": "text",
    "integer": 1,
    "number": 1.5,
    "boolean": True,
    "null": None,
}
_DEEPEST = 8


def sample(schema: Any, depth: int = 0) -> Any:
    """Return the same fitting value each time; every property is present."""
    if not isinstance(schema, dict) or depth > _DEEPEST:
        return None
    if schema.get("enum"):
        return schema["enum"][0]
    if "const" in schema:
        return schema["const"]
    for union in ("anyOf", "oneOf"):
        if schema.get(union):
            return sample(schema[union][0], depth + 1)
    kind = schema.get("type", "object")
    kind = kind[0] if isinstance(kind, list) and kind else kind
    if kind == "object":
        properties = schema.get("properties") or {}
        return {name: sample(item, depth + 1) for name, item in properties.items()}
    if kind == "array":
        return [sample(schema.get("items", {"type": "string"}), depth + 1)]
    return _PLAIN.get(kind) if isinstance(kind, str) else None
