"""/admin/v1/files: what tenants uploaded, and what their batches wrote."""

from collections.abc import AsyncIterator
from datetime import datetime
from typing import Any, Literal

from pydantic import Field
from quart import Response

from trio_gateway.clients.blobs import BlobMissing
from trio_gateway.core.errors import StoreUnavailable
from trio_gateway.dialects.openai_files import LISTED, disposition
from trio_gateway.web.admin.api.owners import tenant_id
from trio_gateway.web.admin.api.paging import page
from trio_gateway.web.admin.api.sections import Section, books
from trio_gateway.web.admin.api.shapes import Answer, Gone, Name, Page, Paged
from trio_gateway.web.admin.office import office

section = Section("files")

PIECE = 1024 * 1024  # bytes in memory for each download
OCTETS = "application/octet-stream"


class FileList(Paged):
    """Files, the latest first."""

    tenant: Name | None = Field(None, description="Only this tenant's, by name or id.")
    purpose: Literal[LISTED] | None = None  # type: ignore[valid-type]


class File(Answer):
    """A file; its contents are at `content`."""

    id: str
    tenant: str
    tenant_id: str
    purpose: str
    filename: str
    bytes: int
    created_at: datetime
    expires_at: datetime | None


@section.get("/files", Page[File], query=FileList)
async def list_files(query: FileList) -> Any:
    """List files, the latest first."""
    owner = await tenant_id(query.tenant)
    rows = await books().files.listing(owner, query.purpose, query.limit + 1, query.cursor)
    return page(rows, query.limit, lambda row: row["id"])


@section.get("/files/<file>", File)
async def show_file(file: str) -> Any:
    """Show whose file it is, its size and its times."""
    return await books().files.show(file)


@section.get("/files/<file>/content", None, media=(OCTETS,), secret=True)
async def read_file(file: str) -> Response:
    """Read a file's contents; they are a tenant's own, and that you read them is recorded."""
    row = await books().files.read(file)
    first = await _piece(row, 0)
    headers = {
        "content-length": str(row["bytes"]),
        "content-disposition": disposition(row["filename"]),
    }
    return Response(_pieces(row, first), 200, headers, content_type=OCTETS)


@section.delete("/files/<file>", Gone)
async def delete_file(file: str) -> Any:
    """Delete a file; a batch that reads it goes on."""
    row = await books().files.delete(file)
    return {"id": row["id"], "name": row["filename"]}


async def _pieces(row: dict[str, Any], first: bytes) -> AsyncIterator[bytes]:
    yield first
    at = len(first)
    while at < row["bytes"]:
        piece = await _piece(row, at)
        yield piece
        at += len(piece)


async def _piece(row: dict[str, Any], at: int) -> bytes:
    length = min(PIECE, row["bytes"] - at)
    if not length:
        return b""
    try:
        return await office().blobs.read(row["blob"], at, length)
    except BlobMissing:
        raise StoreUnavailable(
            "The file is not in this machine's blob store: see TRIO_GATEWAY_BLOB_URL."
        ) from None
