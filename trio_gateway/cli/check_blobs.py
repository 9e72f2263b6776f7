"""The doctor's look at the blob store: usable from here, and the one that the workers use."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

from trio_gateway.cli.finding import Finding, fail, ok
from trio_gateway.clients.blobs import BadBlobUrl, BlobMissing, open_blobs
from trio_gateway.core.errors import StoreUnavailable
from trio_gateway.services.files.marker import find_marker, is_marked

if TYPE_CHECKING:
    from trio_gateway.clients.blobs import Blobs
    from trio_gateway.clients.postgres import Postgres

SHARE = "Set TRIO_GATEWAY_BLOB_URL, here and on every machine, to one store that all can reach."


async def check_blobs(postgres: Postgres, url: str) -> Finding:
    """Return what was found; nothing is written to the store, nor to the database."""
    marker = await find_marker(postgres)
    folder = Path(unquote(urlsplit(url).path)) if url.startswith("file:") else None
    where = "in the bucket" if folder is None else f"in {folder}"
    if folder is not None and not folder.is_dir():
        # opening the store would make it
        return _empty(where) if marker is None else _elsewhere(where)
    try:
        blobs = open_blobs(url)
        if marker is None:
            await _ask(blobs)
            return _empty(where)
        return ok("blobs", where) if await is_marked(blobs, marker) else _elsewhere(where)
    except BadBlobUrl as error:
        return fail("blobs", str(error), "Correct TRIO_GATEWAY_BLOB_URL.")
    except StoreUnavailable:
        advice = "Look at the folder's owner, or at the bucket, its name and the AWS_* variables."
        return fail("blobs", f"files cannot be read {where}", advice)


async def _ask(blobs: Blobs) -> None:
    with suppress(BlobMissing):
        await blobs.read("markers/none", 0, 1)


def _empty(where: str) -> Finding:
    return ok("blobs", f"empty: no worker has kept a file {where} yet")


def _elsewhere(where: str) -> Finding:
    return fail("blobs", f"the files of this installation are not {where}", SHARE)
