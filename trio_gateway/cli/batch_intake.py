"""A file on this machine on its way to be a batch's input: checked and stored as an upload is."""

from __future__ import annotations

import hashlib
import os
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import orjson
import trio

from trio_gateway.cli.door import Failure
from trio_gateway.cli.file_copy import failures, store_of
from trio_gateway.clients.postgres import Duplicate
from trio_gateway.core.batches import ENDPOINTS, StoredFile
from trio_gateway.core.errors import CallTooLarge
from trio_gateway.dialects.batch_lines import LineSplitter
from trio_gateway.dialects.openai_files import (
    BATCH_SECONDS,
    FirstLine,
    check_batch_name,
    clean_name,
)
from trio_gateway.services.files.files import Files, blob_of, new_file_id

if TYPE_CHECKING:
    from pathlib import Path

    from trio_gateway.cli.session import Desk

PIECE = 1024 * 1024  # bytes
LONGEST_LINE = 32 * 1024 * 1024  # bytes of a first line that is looked at


async def check(file: Path, most: int) -> str:
    """Check a file as an upload for a batch is checked, and return its SHA-256.

    Raises InvalidCall; Failure where it is too large, which is `most` bytes, or not readable.
    """
    check_batch_name(file.name)
    digest, first, size = hashlib.sha256(), FirstLine(), 0
    try:
        async with await trio.open_file(file, "rb") as opened:
            while piece := await opened.read(PIECE):
                size += len(piece)
                digest.update(piece)
                first.feed(piece)
    except OSError as error:
        raise Failure(f"{file} cannot be read: {error.strerror}") from error
    if size > most:
        raise Failure(f"{file} has {size:,} bytes, and TRIO_GATEWAY_MAX_FILE_BYTES is {most:,}")
    first.check()
    return digest.hexdigest()


async def read_endpoint(file: Path) -> str:
    """Return the url of the first request in the file; raises Failure."""
    lines = LineSplitter(LONGEST_LINE)
    first = None
    async with await trio.open_file(file, "rb") as opened:
        while first is None and (piece := await opened.read(PIECE)):
            first = next(lines.feed(piece), None)
    first = first or next(lines.close(), None)
    url = None
    if first is not None and first.text is not None:
        parsed = orjson.loads(first.text)
        url = parsed.get("url") if isinstance(parsed, dict) else None
    if url not in ENDPOINTS:
        raise Failure(
            f"{file}: the first request's url is none of {', '.join(ENDPOINTS)}; see --endpoint"
        )
    return str(url)


async def keep(desk: Desk, file: Path, tenant_id: str, file_id: str) -> None:
    """Store a file as the tenant's, under that id; one that is there already stays.

    Raises CallTooLarge past what a tenant may keep; Failure where the blob store is away.
    """
    given = desk.addresses.settings
    files = Files(desk.postgres, given.tenant_file_bytes)
    blobs = await store_of(desk)
    _refuse_foreign(desk.addresses.blob_folder)
    # a name of its own: whoever stores the same file at the same time has another
    blob = blob_of(tenant_id, new_file_id())
    left = await files.reserve(tenant_id, blob)
    with failures():
        async with await trio.open_file(file, "rb") as opened, blobs.writer(blob) as writer:
            while writer.size <= left and (piece := await opened.read(PIECE)):
                await writer.write(piece)
    now = datetime.now(UTC)
    expires = now + timedelta(seconds=BATCH_SECONDS)
    stored = StoredFile(
        file_id, tenant_id, "batch", clean_name(file.name), writer.size, blob, now, expires
    )
    refused: Duplicate | CallTooLarge | None = None
    try:
        await files.keep(stored)
    except (Duplicate, CallTooLarge) as error:
        refused = error
    if refused is not None:
        await files.abandon(blob)
    if isinstance(refused, CallTooLarge):
        raise refused


def _refuse_foreign(folder: Path | None) -> None:
    """Raise Failure where the workers could not write beside, or delete, what is written here."""
    if folder is not None and folder.stat().st_uid != os.geteuid():
        raise Failure(f"{folder} belongs to another user: run this as the user of `serve`")
