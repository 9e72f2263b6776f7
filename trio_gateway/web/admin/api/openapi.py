"""The API's own description, OpenAPI 3.1, made of what each route declares."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from pydantic import TypeAdapter
from quart import Response, current_app
from quart.json import dumps
from quart_schema import APIKeySecurityScheme, HttpSecurityScheme, Info, QuartSchema
from quart_schema.openapi import OpenAPIProvider

from trio_gateway import __version__
from trio_gateway.web.admin.api.sections import JSON, Section
from trio_gateway.web.admin.api.shapes import Problem

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from quart import Quart
    from werkzeug.routing import Rule

    from trio_gateway.web.admin.api.sections import Declared

section = Section("description")

DOCUMENT = "trio_gateway_openapi"  # where the application keeps it
ABOUT = (
    "Everything an operator does, as the command line and the dashboard do it. A token of the role"
    " `viewer` reads, one of the role `admin` changes. Unknown fields and parameters are refused;"
    " `null` lifts a limit and `0` lets nothing pass; a change names what it changes, and what it"
    " does not name stays. Tenants, keys and admins go by name or id. Times are ISO 8601 in UTC."
)
_ERRORS = {
    400: "Something is malformed, unknown or out of range; `param` names it.",
    401: "No token, or one that is not honored.",
    403: "The token's role does not allow this.",
    404: "There is nothing of this name or id.",
    409: "Somebody has the name, or the thing's state does not allow this.",
    413: "The body is larger than 1 MiB.",
    415: "The body is not JSON, or is encoded.",
    421: "The Host is not this listener's.",
    503: "A store does not answer; try again.",
}
_EVERYWHERE = (400, 401, 403, 413, 415, 421, 503)
_NAMING = {"tenant", "key", "subject"}
_SCHEMA_OF_MEDIA = {
    "application/octet-stream": {"type": "string", "format": "binary"},
    JSON: {"type": "object"},
}


class Provider(OpenAPIProvider):
    """Adds what quart-schema cannot know: errors, other media, and what a parameter requires."""

    def schema(self) -> dict[str, Any]:
        """Return the whole document."""
        document = super().schema()
        problem = TypeAdapter(Problem).json_schema(
            ref_template="#/components/schemas/{model}", mode="serialization"
        )
        document["components"]["schemas"] |= problem.pop("$defs")
        document["components"]["schemas"]["Problem"] = problem
        content = {JSON: {"schema": {"$ref": "#/components/schemas/Problem"}}}
        document["components"]["responses"] = {
            f"Error{code}": {"description": text, "content": content}
            for code, text in _ERRORS.items()
        }
        return document

    def generate_rules(self) -> Iterable[Rule]:
        """Leave out the dashboard's routes, which are no API."""
        rules = (rule for rule in self._app.url_map.iter_rules() if self._declared(rule))
        return sorted(rules, key=lambda rule: rule.rule)

    def operation_id(self, method: str, path: str, func: Callable[..., Any]) -> str:
        """Return the handler's own name, which is unique."""
        del method, path
        return func.__name__

    def build_paths(self, rule: Rule) -> tuple[dict[str, Any], dict[str, Any]]:
        """Complete what the routes of one rule declare."""
        paths, components = super().build_paths(rule)
        declared = self._declared(rule)
        assert declared is not None  # noqa: S101 - `generate_rules` left out the others
        for path, operations in paths.items():
            for method, operation in operations.items():
                self._complete(path, method, operation, declared)
        return paths, components

    def build_querystring_parameters(
        self, model: Any
    ) -> tuple[list[dict[str, Any]], dict[str, Any]]:
        """Say that no parameter is required, and do not offer null, which a query cannot say."""
        parameters, definitions = super().build_querystring_parameters(model)
        for parameter in parameters:
            schema = parameter["schema"]
            told = [each for each in schema.pop("anyOf", ()) if each != {"type": "null"}]
            if len(told) == 1:
                schema |= told[0]
            for word, name in (("ge", "minimum"), ("le", "maximum")):
                if word in schema:
                    schema[name] = schema.pop(word)
            schema.pop("title", None)
            if schema.get("default", "") is None:
                del schema["default"]
        return parameters, definitions

    def _declared(self, rule: Rule) -> Declared | None:
        return getattr(self._app.view_functions[rule.endpoint], "declared", None)

    def _complete(
        self, path: str, method: str, operation: dict[str, Any], declared: Declared
    ) -> None:
        operation["responses"] = dict(operation["responses"])
        done = operation["responses"].setdefault(
            declared.status, {"description": operation["summary"], "content": {}}
        )
        done["description"] = done["description"] or operation["summary"]
        done["content"] |= {
            media: {"schema": _SCHEMA_OF_MEDIA.get(media, {"type": "string"})}
            for media in declared.media
        }
        if declared.status == 201:
            done["headers"] = {
                "location": {"schema": {"type": "string"}, "description": "Where it is now."}
            }
        fields = {*declared.query.model_fields, *getattr(declared.body, "model_fields", ())}
        naming = "{" in path or fields & _NAMING
        codes = [*_EVERYWHERE, *([404] if naming else []), *([409] if declared.conflicts else [])]
        operation["responses"] |= {
            code: {"$ref": f"#/components/responses/Error{code}"} for code in sorted(codes)
        }
        if "requestBody" in operation:
            schema = operation["requestBody"]["content"][JSON]["schema"]
            needed = "required" in schema or "minProperties" in schema
            operation["requestBody"]["required"] = needed
        takes_admin = method != "get" or declared.secret
        operation["description"] = " ".join(
            [
                *operation.get("description", "").split(),
                f"Takes the role `{'admin' if takes_admin else 'viewer'}`.",
            ]
        )


@section.get("/openapi.json", None, media=(JSON,))
async def show_openapi() -> Response:
    """Return this description."""
    return Response(dumps(current_app.extensions[DOCUMENT]), 200, content_type=JSON)


def describe(app: Quart) -> None:
    """Make the description, once every route is registered."""
    schema = QuartSchema(
        app,
        openapi_path=None,
        info=Info(title="trio-gateway admin API", version=__version__, description=ABOUT),
        security_schemes={
            "token": HttpSecurityScheme(scheme="bearer"),
            "x-api-key": APIKeySecurityScheme(in_="header", name="x-api-key"),
        },
        security=[{"token": []}, {"x-api-key": []}],
        openapi_provider_class=Provider,
        conversion_preference="pydantic",
    )
    app.extensions[DOCUMENT] = _plain(schema.openapi_provider.schema())


def _plain(value: Any) -> Any:
    """Make keys texts, and name components as OpenAPI wants them: `Page[Key]` is `Page_Key_`."""
    if isinstance(value, dict):
        return {_name(str(key)): _plain(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(each) for each in value]
    if isinstance(value, str) and value.startswith("#/components/"):
        return _name(value)
    return value


def _name(text: str) -> str:
    return re.sub(r"[\[\]]", "_", text) if "[" in text else text
