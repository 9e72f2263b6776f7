"""Contents of files, out of the blob store and onto this machine."""

from __future__ import annotations

import os
import sys
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import trio

from trio_gateway.cli.door import Failure
from trio_gateway.clients.blobs import BadBlobUrl, BlobMissing, open_blobs
from trio_gateway.core.errors import StoreUnavailable
from trio_gateway.services.files.marker import find_marker, is_marked

if TYPE_CHECKING:
    from collections.abc import Iterator

    from trio_gateway.cli.session import Desk
    from trio_gateway.clients.blobs import Blobs, Reader
    from trio_gateway.services.account_rows import Row

ELSEWHERE = "the files are in another blob store: set TRIO_GATEWAY_BLOB_URL as `serve` has it"


async def copy(desk: Desk, file_id: str, place: Path | None, *, force: bool = False) -> Row:
    """Write a file's contents to `place`, or to stdout for None, and return its row.

    Raises NotFound; Failure where the blob store or the place cannot be used.
    """
    if place is not None:
        check_place(place, force=force)
    blobs = await store_of(desk)
    row = await desk.files.read(file_id)
    with failures():
        async with blobs.reader(row["blob"]) as reader:
            with _stdout() if place is None else _replacing(place) as stream:
                await _pour(reader, stream)
    return row


def check_place(place: Path, *, force: bool) -> None:
    """Raise Failure where no file can be put, or one is there already, unless `force`."""
    try:
        if place.exists() and not place.is_file():  # a device would be replaced for all
            raise Failure(f"{place} is no regular file")
        if place.exists() and not force:
            raise Failure(f"{place} is there already; --force overwrites it")
        descriptor, temporary = _beside(place)
        os.close(descriptor)
        Path(temporary).unlink()
    except OSError as error:
        raise Failure(f"cannot write {place}: {error.strerror}") from error


async def store_of(desk: Desk) -> Blobs:
    """Open the installation's blob store; raises Failure, also for one that is not its own."""
    marker = await find_marker(desk.postgres)
    try:
        blobs = open_blobs(desk.addresses.blob_url)
    except BadBlobUrl as error:
        raise Failure(str(error)) from error
    with failures():
        if marker is not None and not await is_marked(blobs, marker):
            raise Failure(ELSEWHERE)
    return blobs


@contextmanager
def failures() -> Iterator[None]:
    """Turn what may go wrong between the blob store and this machine into a Failure."""
    try:
        yield
    except BlobMissing as error:
        raise Failure(ELSEWHERE) from error
    except StoreUnavailable as error:
        raise Failure("the blob store cannot be used; see `trio-gateway doctor`") from error
    except OSError as error:
        raise Failure(f"cannot write: {error.strerror}") from error


def _beside(place: Path) -> tuple[int, str]:
    return tempfile.mkstemp(dir=place.parent, prefix=f".{place.name}.")


@contextmanager
def _replacing(place: Path) -> Iterator[BinaryIO]:
    """Give a file that takes its place once it is whole; it is the operator's alone (0600)."""
    descriptor, temporary = _beside(place)
    try:
        with os.fdopen(descriptor, "wb") as stream:
            yield stream
        Path(temporary).replace(place)
    finally:
        Path(temporary).unlink(missing_ok=True)


@contextmanager
def _stdout() -> Iterator[BinaryIO]:
    """Give stdout; a reader who leaves early ends the block, and that is no failure."""
    try:
        yield sys.stdout.buffer
    except BrokenPipeError:
        # what is still to be flushed at the exit would fail again
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)


async def _pour(reader: Reader, stream: BinaryIO) -> None:
    while piece := await reader.read():
        await trio.to_thread.run_sync(stream.write, piece)
    await trio.to_thread.run_sync(stream.flush)
