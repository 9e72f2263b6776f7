"""Lists as CSV (RFC 4180) or as a JSON object a line, written as they are read."""

from __future__ import annotations

import codecs
import csv
import io
import json
import re
from contextlib import aclosing, suppress
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import structlog
from quart import Response, request

from trio_gateway.core.errors import GatewayError, InvalidCall

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping, Sequence

    from trio_gateway.web.admin.api.shapes import Answer, Query

    Pages = AsyncGenerator[Sequence[Mapping[str, Any]], None]

log = structlog.get_logger()

Format = Literal["json", "csv", "jsonl"]

CSV = "text/csv; charset=utf-8"
JSONL = "application/jsonl"
NDJSON = "application/x-ndjson"  # the same by its other name
MEDIA = ("text/csv", JSONL, NDJSON)
MARK = codecs.BOM_UTF8
STEP = 1000  # rows read at once
# A spreadsheet takes a cell that begins so for a formula; some split at a semicolon or a tab.
_FORMULA = re.compile(r"[\t\r\n]|(?:.*[;\t])?\s*[=+\-@\uff1d\uff0b\uff0d\uff20]", re.DOTALL)
_NUMBERS = (int, float)
_BY_TYPE: dict[str, Format] = {
    "application/json": "json",
    "text/csv": "csv",
    JSONL: "jsonl",
    NDJSON: "jsonl",
}


def wanted_format(query: Query) -> Format:
    """Return the format asked for by the parameter or, without it, by Accept.

    Raises InvalidCall for a page of an export, which has none.
    """
    given: Format | None = getattr(query, "format", None)
    if given is None:
        best = request.accept_mimetypes.best_match(list(_BY_TYPE), default="application/json")
        given = _BY_TYPE[best or "application/json"]
    if given != "json":
        for name in query.model_fields_set & {"limit", "cursor"}:
            raise InvalidCall(f"'{name}': an export has no pages.", param=name)
    return given


async def export(
    name: str,
    shape: type[Answer],
    wanted: Format,
    pages: Pages,
    *,
    marked: bool = False,
) -> Response:
    """Answer with every row of `pages`, in `shape`; the first is read before the answer begins.

    CSV that is `marked` says that it is UTF-8; without, spreadsheets take it for something else.
    """
    first: Sequence[Mapping[str, Any]] = ()
    with suppress(StopAsyncIteration):  # nothing matches
        first = await anext(pages)
    encode = _csv if wanted == "csv" else _jsonl
    head = (MARK if marked else b"") + _lines([[*shape.model_fields]]) if wanted == "csv" else b""
    ending = "csv" if wanted == "csv" else "jsonl"
    headers = {"content-disposition": f'attachment; filename="{name}.{ending}"'}
    lines = request.accept_mimetypes.best_match([JSONL, NDJSON], default=JSONL)
    media = CSV if wanted == "csv" else lines
    body = _written(head, partial(encode, shape), first, pages)
    return Response(body, 200, headers, content_type=media)


async def _written(
    head: bytes,
    encode: Callable[[Sequence[Mapping[str, Any]]], bytes],
    first: Sequence[Mapping[str, Any]],
    pages: Pages,
) -> AsyncIterator[bytes]:
    try:
        async with aclosing(pages):
            yield head + encode(first)  # noqa: ASYNC119 - Quart closes what it sends
            async for page in pages:
                yield encode(page)  # noqa: ASYNC119
    except GatewayError as error:
        # The status is gone: the connection breaks off, so that nobody takes a part for all.
        log.warning("export_broke", error=type(error).__name__)
        raise


def _csv(shape: type[Answer], rows: Sequence[Mapping[str, Any]]) -> bytes:
    shaped = (shape.model_validate(row).model_dump(mode="json") for row in rows)
    return _lines([[_cell(row[name]) for name in shape.model_fields] for row in shaped])


def _jsonl(shape: type[Answer], rows: Sequence[Mapping[str, Any]]) -> bytes:
    return b"".join(shape.model_validate(row).model_dump_json().encode() + b"\n" for row in rows)


def _lines(rows: Sequence[Sequence[str]]) -> bytes:
    text = io.StringIO()
    csv.writer(text, lineterminator="\r\n").writerows(rows)
    return text.getvalue().encode()


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, str):
        return f"'{value}" if _FORMULA.match(value) else value
    return str(value) if type(value) in _NUMBERS else json.dumps(value)
