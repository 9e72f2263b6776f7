"""Routes of one noun each: what they take and answer is declared once, checked and documented."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import wraps
from typing import TYPE_CHECKING, Any

from quart import Blueprint, Response, request
from quart_schema import document_querystring, document_request, document_response, tag_blueprint

from trio_gateway.core.errors import NotFound
from trio_gateway.core.officers import Role
from trio_gateway.services.account_rows import Refused
from trio_gateway.web.admin.api.asking import check_encoding, read_body, read_query, refuse_body
from trio_gateway.web.admin.api.paging import malformed
from trio_gateway.web.admin.api.shapes import Answer, Nothing
from trio_gateway.web.admin.guard import officer, require
from trio_gateway.web.admin.office import office

if TYPE_CHECKING:
    from trio_gateway.pipeline.books import Books
    from trio_gateway.web.admin.api.shapes import Body, Query

Handler = Callable[..., Awaitable[Any]]

BASE = "/admin/v1"
JSON = "application/json"
_CURSORS = {"after", "before"}  # what services call that which a cursor stands for


@dataclass(frozen=True, kw_only=True)
class Declared:
    """What a route takes and answers beside JSON in the shape of its answer.

    `media` are other types of its answer; `secret` is a read that takes the role `admin`.
    """

    query: type[Query] = Nothing
    body: type[Body] | None = None
    status: int = 200
    media: tuple[str, ...] = ()
    conflicts: bool = False
    secret: bool = False


class Section:
    """The routes of one noun."""

    def __init__(self, name: str, tag: str | None = None, templates: str | None = None) -> None:
        """Document them under a tag, which is the name where nothing is said."""
        self.blueprint = Blueprint(
            f"api_{name}", __name__, url_prefix=BASE, template_folder=templates
        )
        tag_blueprint(self.blueprint, [tag or name])

    def get(
        self, path: str, answer: type[Answer] | None, **declared: Any
    ) -> Callable[[Handler], Handler]:
        """Add a route that reads."""
        return self._route("GET", path, answer, Declared(**declared))

    def post(
        self, path: str, answer: type[Answer] | None, **declared: Any
    ) -> Callable[[Handler], Handler]:
        """Add a route that makes something, or acts."""
        return self._route("POST", path, answer, Declared(**declared))

    def patch(
        self, path: str, answer: type[Answer], **declared: Any
    ) -> Callable[[Handler], Handler]:
        """Add a route that changes what its body names."""
        return self._route("PATCH", path, answer, Declared(**declared))

    def delete(
        self, path: str, answer: type[Answer], **declared: Any
    ) -> Callable[[Handler], Handler]:
        """Add a route that deletes."""
        return self._route("DELETE", path, answer, Declared(**declared))

    def _route(
        self, method: str, path: str, answer: type[Answer] | None, declared: Declared
    ) -> Callable[[Handler], Handler]:
        def add(handler: Handler) -> Handler:
            view = _view(handler, answer, declared)
            self.blueprint.add_url_rule(path, handler.__name__, view, methods=[method])
            return handler

        return add


def books() -> Books:
    """Return the books in which what the caller changes is recorded under their name."""
    return office().books(officer())


def actor() -> str:
    """Return the caller's name as the record has it."""
    return officer().actor


def made(answer: Answer, place: str) -> tuple[Answer, str]:
    """Return what was created and where it is now, below BASE."""
    return answer, BASE + place


def _view(handler: Handler, answer: type[Answer] | None, declared: Declared) -> Handler:
    @wraps(handler)
    async def view(**names: str) -> Response:
        if declared.secret:
            require(Role.ADMIN)
        check_encoding()
        content = bytes(await request.get_data(as_text=False))  # type: ignore[arg-type]
        query = read_query(declared.query)
        if declared.query is not Nothing:
            names["query"] = query  # type: ignore[assignment]
        if declared.body is not None:
            names["body"] = read_body(declared.body, content)  # type: ignore[assignment]
        else:
            refuse_body(content)
        return _reply(await _found(handler, names), answer, declared.status)

    if declared.query is not Nothing:
        document_querystring(declared.query)(view)
    if declared.body is not None:
        document_request(declared.body)(view)
    if answer is not None:
        document_response(answer, declared.status)(view)
    view.declared = declared  # type: ignore[attr-defined]
    return view


async def _found(handler: Handler, names: dict[str, str]) -> Any:
    """Run a handler; what its errors call after, before or id is called as this API does."""
    try:
        return await handler(**names)
    except Refused as error:
        if error.param in _CURSORS:
            raise malformed() from error
        raise
    except NotFound as error:
        raise NotFound(error.message, param=next(iter(request.view_args or ()), None)) from error


def _reply(found: Any, answer: type[Answer] | None, status: int) -> Response:
    """Encode what a handler returned: a response, an answer, rows for one, and where it is."""
    if isinstance(found, Response):
        return found
    found, place = found if isinstance(found, tuple) else (found, None)
    if answer is not None and not isinstance(found, answer):
        found = answer.model_validate(found)
    headers = {"location": place} if place else {}
    return Response(found.model_dump_json(), status, headers, content_type=JSON)
