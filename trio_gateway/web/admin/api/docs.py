"""The API's description as a page: rendered here, without a script, from the document alone."""

from __future__ import annotations

import base64
import hashlib
from pathlib import Path
from typing import Any

from quart import Response, current_app, render_template

from trio_gateway.web.admin.api.openapi import DOCUMENT
from trio_gateway.web.admin.api.sections import JSON, Section

section = Section("docs", "description", "templates")

HTML = "text/html; charset=utf-8"
_STYLE = (Path(__file__).parent / "templates" / "api_docs.css").read_text(encoding="utf-8")
_DIGEST = base64.b64encode(hashlib.sha256(_STYLE.encode()).digest()).decode()
POLICY = (
    f"default-src 'none'; style-src 'sha256-{_DIGEST}'; base-uri 'none'; form-action 'none';"
    " frame-ancestors 'none'"
)


@section.get("/docs", None, media=("text/html",))
async def show_docs() -> Response:
    """Return this description as a page."""
    text = await render_template("api_docs.html", style=_STYLE, **described())
    return Response(text, 200, {"content-security-policy": POLICY}, content_type=HTML)


def described() -> dict[str, Any]:
    """Return what a page of the description is made of: `info`, `groups` and `schemas`."""
    document = current_app.extensions[DOCUMENT]
    return {
        "info": document["info"],
        "groups": _groups(document),
        "schemas": {
            name: _fields(schema) for name, schema in document["components"]["schemas"].items()
        },
    }


def _groups(document: dict[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """Return the operations under their tags, in the order of their paths."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            shown = {
                "id": operation["operationId"],
                "method": method.upper(),
                "path": path,
                "summary": operation["summary"],
                "description": operation["description"],
                "parameters": [
                    {**each, "kind": kind(each["schema"])} for each in operation["parameters"]
                ],
                "body": _body(operation),
                "answers": _answers(document, operation),
            }
            groups.setdefault(operation["tags"][0], []).append(shown)
    return dict(sorted(groups.items()))


def _body(operation: dict[str, Any]) -> list[dict[str, Any]]:
    if "requestBody" not in operation:
        return []
    return _fields(operation["requestBody"]["content"][JSON]["schema"])


def _answers(document: dict[str, Any], operation: dict[str, Any]) -> list[dict[str, Any]]:
    rows = []
    for code, answer in operation["responses"].items():
        _, _, name = answer.get("$ref", "").rpartition("/")
        found = document["components"]["responses"][name] if name else answer
        schema = found["content"].get(JSON, {}).get("schema", {})
        rows.append(
            {
                "code": code,
                "description": found["description"],
                "media": ", ".join(found["content"]),
                "fields": [] if name else _fields(schema),
            }
        )
    return rows


def _fields(schema: dict[str, Any]) -> list[dict[str, Any]]:
    required = schema.get("required", ())
    return [
        {
            "name": name,
            "kind": kind(each),
            "required": name in required,
            "default": each.get("default"),
            "description": each.get("description", ""),
        }
        for name, each in schema.get("properties", {}).items()
    ]


def kind(schema: dict[str, Any]) -> str:
    """Say in words what a value may be."""
    if "$ref" in schema:
        return str(schema["$ref"].rpartition("/")[2])
    if "anyOf" in schema:
        return " or ".join(kind(each) for each in schema["anyOf"])
    if "enum" in schema:
        return " | ".join(str(each) for each in schema["enum"])
    if "const" in schema:
        return str(schema["const"]).lower()
    name = str(schema.get("type", "anything"))
    if name == "array":
        return f"array of {kind(schema.get('items', {}))}"
    bounds = [
        f"{sign} {schema[word]}"
        for word, sign in (("minimum", "≥"), ("maximum", "≤"), ("maxLength", "length ≤"))
        if word in schema
    ]
    return ", ".join([str(schema.get("format", name)), *bounds])
