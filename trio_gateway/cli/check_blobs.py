"""The doctor's look at the blob store: usable from here, and the one that the workers use."""

from __future__ import annotations

from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING

import trio

from trio_gateway.cli.finding import Finding, fail, ok, warn
from trio_gateway.clients.blobs import BadBlobUrl, BlobMissing, open_blobs
from trio_gateway.core.errors import StoreUnavailable
from trio_gateway.services.files.marker import find_marker, is_marked

if TYPE_CHECKING:
    from pathlib import Path

    from trio_gateway.cli.addresses import Addresses
    from trio_gateway.clients.blobs import Blobs
    from trio_gateway.clients.postgres import Postgres

SHARE = "Set TRIO_GATEWAY_BLOB_URL, here and on every machine, to one store that all can reach."


async def check_blobs(postgres: Postgres, addresses: Addresses) -> list[Finding]:
    """Return what was found; nothing is written to the store, nor to the database."""
    marker = await find_marker(postgres)
    # The store's own calls cannot be cancelled, and wait for minutes: a thread with a loop of
    # its own can be left to itself.
    look = partial(trio.run, _look, addresses, marker)
    return [await trio.to_thread.run_sync(look, abandon_on_cancel=True)]


async def _look(addresses: Addresses, marker: str | None) -> Finding:
    folder = addresses.blob_folder
    where = "in the bucket" if folder is None else f"in {folder}"
    if folder is not None and not folder.is_dir():
        # opening the store would make it
        return _empty(where) if marker is None else _elsewhere(where)
    try:
        blobs = open_blobs(addresses.blob_url)
        if marker is None:
            await _ask(blobs)
            return _empty(where)
        if not await is_marked(blobs, marker):
            return _elsewhere(where)
        return ok("blobs", where) if folder is None or _private(folder) else _open_to_others(where)
    except BadBlobUrl as error:
        return fail("blobs", str(error), "Correct TRIO_GATEWAY_BLOB_URL.")
    except StoreUnavailable:
        advice = "Look at the folder's owner, or at the bucket, its name and the AWS_* variables."
        return fail("blobs", f"files cannot be read {where}", advice)


async def _ask(blobs: Blobs) -> None:
    with suppress(BlobMissing):
        await blobs.read("markers/none", 0, 1)


def _private(folder: Path) -> bool:
    return not folder.stat().st_mode & 0o077


def _open_to_others(where: str) -> Finding:
    detail = f"other users of this machine may read the files {where}"
    return warn("blobs", detail, "Take the folder's permissions for group and others away.")


def _empty(where: str) -> Finding:
    return ok("blobs", f"empty: no worker has kept a file {where} yet")


def _elsewhere(where: str) -> Finding:
    return fail("blobs", f"the files of this installation are not {where}", SHARE)
