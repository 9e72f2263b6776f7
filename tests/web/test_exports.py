"""Exports: what they are called, and that nothing of them is left to the collector."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from quart import Response
from quart_trio import QuartTrio

from trio_gateway.web.admin.api.exports import export
from trio_gateway.web.admin.api.shapes import Answer

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator


class Row(Answer):
    """One cell."""

    name: str


class Pages:
    """Endless pages, which know whether somebody closed them."""

    def __init__(self) -> None:
        self.closed = False

    async def read(self) -> AsyncGenerator[list[dict[str, Any]], None]:
        """Yield one row at a time."""
        try:
            while True:
                yield [{"name": "x"}]
        finally:
            self.closed = True


async def test_what_is_read_for_an_export_ends_with_it():
    """Whoever gives an export up closes its pages in the same step."""
    pages = Pages()
    async with QuartTrio("export").test_request_context("/"):
        response = await export("rows", Row, "csv", pages.read())
    assert isinstance(response, Response)
    async with response.response as body:
        pieces = aiter(body)
        received = [await anext(pieces) for _ in range(3)]
        assert not pages.closed
    assert received == [b"name\r\nx\r\n", b"x\r\n", b"x\r\n"]
    assert pages.closed


@pytest.mark.parametrize(
    ("accept", "media"),
    [
        ("application/x-ndjson", "application/x-ndjson"),
        ("application/jsonl", "application/jsonl"),
        ("*/*", "application/jsonl"),
        ("text/csv", "application/jsonl"),
        ("application/jsonl;q=0.5, application/x-ndjson", "application/x-ndjson"),
    ],
)
async def test_json_lines_are_called_what_the_caller_calls_them(accept, media):
    """One of two names, for the same lines."""
    headers = {"accept": accept}
    async with QuartTrio("export").test_request_context("/", headers=headers):
        response = await export("rows", Row, "jsonl", Pages().read())
    assert response.content_type == media
    assert isinstance(response, Response)
    async with response.response as body:
        assert await anext(aiter(body)) == b'{"name":"x"}\n'
