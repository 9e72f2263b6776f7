"""The blob store through obstore: a local folder, or a bucket that speaks S3.

obstore's own calls block, so each runs in a thread; none can be cancelled, but each ends within
the limits below. A blob is written once, is never changed, and is there whole or not at all.
"""

from __future__ import annotations

import os
import re
import shutil
from contextlib import asynccontextmanager, suppress
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import unquote, urlsplit

import obstore
import structlog
import trio
from obstore.exceptions import BaseError
from obstore.store import LocalStore, S3Store

from trio_gateway.core.errors import StoreUnavailable

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from obstore.store import S3Config

T = TypeVar("T")

log = structlog.get_logger()

THREADS = 16  # that wait for the store at once
PIECE = 1024 * 1024  # bytes of one read, and of one crossing into a thread
S3_PART = 5 * 1024 * 1024  # the least that S3 takes as a part
ABORT_LIMIT = 60.0  # seconds; the requests' own limits end it before
_REQUEST = "30s"
_CONNECT = "5s"
_RETRIES = 3
_RETRY_LIMIT = timedelta(seconds=20)

_PATH = re.compile(r"(?!/)(?!.*(?:^|/)\.{1,2}(?:/|$))(?!.*//)[A-Za-z0-9._/-]{1,512}")
_S3_URL = re.compile(r"s3://[a-z0-9][a-z0-9.-]{1,61}[a-z0-9](?:/[A-Za-z0-9._/-]*)?")


class BlobMissing(Exception):
    """There is no such blob, or it is shorter than what was asked for."""


class BadBlobUrl(ValueError):
    """The address of the blob store cannot be used; one sentence, which never holds the address."""


def open_blobs(url: str) -> Blobs:
    """Return the store at `file:///folder` or `s3://bucket[/prefix]`. Raises BadBlobUrl.

    A missing folder is made, 0700. Keys, region and endpoint of a bucket come from the usual
    AWS_* variables. Nothing is asked of a bucket before its first use.
    """
    if url.startswith("s3://"):
        return _bucket(url)
    parts = urlsplit(url)
    root = unquote(parts.path)
    if parts.scheme != "file" or parts.netloc or parts.query or not root.startswith("/"):
        raise BadBlobUrl("TRIO_GATEWAY_BLOB_URL must be file:///folder or s3://bucket[/prefix]")
    try:
        Path(root).mkdir(mode=0o700, parents=True, exist_ok=True)
        return Blobs(LocalStore(root), Path(root))
    except (OSError, ValueError, BaseError):
        raise BadBlobUrl("the folder of TRIO_GATEWAY_BLOB_URL cannot be made or used") from None


def _bucket(url: str) -> Blobs:
    if not _S3_URL.fullmatch(url):
        raise BadBlobUrl("TRIO_GATEWAY_BLOB_URL must be s3://bucket or s3://bucket/prefix")
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or ""
    config: S3Config = {"endpoint": endpoint} if endpoint else {}
    try:
        store = S3Store.from_url(
            url,
            client_options={
                "allow_http": endpoint.startswith("http://"),
                "timeout": _REQUEST,
                "connect_timeout": _CONNECT,
            },
            retry_config={"max_retries": _RETRIES, "retry_timeout": _RETRY_LIMIT},
            config=config,
        )
    except (OSError, ValueError, BaseError):
        raise BadBlobUrl("the AWS_* variables do not describe a bucket that can be used") from None
    return Blobs(store, None)


class Blobs:
    """A store of blobs by path. Every method raises StoreUnavailable when it cannot be used."""

    def __init__(self, store: LocalStore | S3Store, root: Path | None) -> None:
        """Built by `open_blobs`; `root` is the folder, None for a bucket."""
        self._store = store
        self._root = root
        self._part = S3_PART if root is None else PIECE
        self._threads = trio.CapacityLimiter(THREADS)

    async def put(self, path: str, content: bytes) -> None:
        """Store a whole blob in one step."""
        await self.call(self._put, _checked(path), content)

    async def read(self, path: str, start: int, length: int) -> bytes:
        """Return exactly this range, or raise BlobMissing."""
        return await self.call(self._read, _checked(path), start, length)

    @asynccontextmanager
    async def reader(
        self, path: str, start: int = 0, length: int | None = None
    ) -> AsyncIterator[Reader]:
        """Read a blob, or a range of it, piece by piece. Raises BlobMissing on entering."""
        size = await self.call(self._size, _checked(path))
        end = size if length is None else start + length
        if end > size or start > size:
            raise BlobMissing
        yield Reader(self, path, start, end)

    @asynccontextmanager
    async def writer(self, path: str) -> AsyncIterator[Writer]:
        """Write a blob piece by piece; it is there once the block has ended well.

        Left by an exception or a cancel, the block leaves nothing behind.
        """
        file = obstore.open_writer(
            self._store, _checked(path), buffer_size=self._part, max_concurrency=1
        )
        writer = Writer(self, file)
        try:
            yield writer
            await writer.flush()
            await self.call(self._commit, path, file)
        except BaseException:
            with trio.move_on_after(ABORT_LIMIT, shield=True), suppress(StoreUnavailable):
                await self.call(self._abort, path, file, writer.sent)
            raise

    async def delete(self, path: str) -> None:
        """Delete a blob, and what a killed writer of it left; no blob is no error.

        A path that ends in a slash is everything below it.
        """
        await self.call(self._delete, _checked(path))

    async def call(self, operation: Callable[..., T], *args: Any) -> T:
        """Run an operation of the store in a thread, its errors renamed."""
        try:
            return await trio.to_thread.run_sync(operation, *args, limiter=self._threads)
        except FileNotFoundError:
            raise BlobMissing from None
        except (OSError, BaseError) as error:
            # The texts hold addresses, and answers of the store that may hold more.
            log.warning("blob_store_failed", error=type(error).__name__)
            raise StoreUnavailable from None

    def _put(self, path: str, content: bytes) -> None:
        obstore.put(self._store, path, content, use_multipart=False)
        self._settle(path)

    def _read(self, path: str, start: int, length: int) -> bytes:
        if not length:
            return b""
        try:
            content = bytes(obstore.get_range(self._store, path, start=start, length=length))
        except BaseError:
            if self._size(path) >= start + length:
                raise
            raise BlobMissing from None
        if len(content) < length:
            raise BlobMissing
        return content

    def _size(self, path: str) -> int:
        return obstore.head(self._store, path)["size"]

    def _commit(self, path: str, file: obstore.WritableFile) -> None:
        file.close()
        self._settle(path)

    def _settle(self, path: str) -> None:
        """Let a blob in a folder survive a loss of power; a bucket sees to it by itself."""
        if self._root is not None:
            for place in (self._root / path, (self._root / path).parent):
                descriptor = os.open(place, os.O_RDONLY)
                try:
                    os.fsync(descriptor)
                finally:
                    os.close(descriptor)

    def _abort(self, path: str, file: obstore.WritableFile, sent: int) -> None:
        if self._root is None and sent >= self._part:
            # obstore cannot abandon the parts that the bucket has: made whole, they can be deleted
            with suppress(OSError, BaseError):
                file.close()
        self._delete(path)

    def _delete(self, path: str) -> None:
        if self._root is None:
            self._delete_objects(path)
        elif path.endswith("/"):
            with suppress(FileNotFoundError):
                shutil.rmtree(self._root / path)
        else:
            place = self._root / path
            for leftover in place.parent.glob(f"{place.name}#*"):
                leftover.unlink(missing_ok=True)
            place.unlink(missing_ok=True)

    def _delete_objects(self, path: str) -> None:
        if not path.endswith("/"):
            with suppress(FileNotFoundError):
                obstore.delete(self._store, path)
            return
        for found in obstore.list(self._store, path):
            obstore.delete(self._store, [blob["path"] for blob in found])


class Reader:
    """A range of a blob, from its beginning; no more than a piece is in memory."""

    def __init__(self, blobs: Blobs, path: str, start: int, end: int) -> None:
        """Made by `Blobs.reader` only."""
        self._blobs = blobs
        self._path = path
        self._at = start
        self._end = end

    @property
    def left(self) -> int:
        """How many bytes are still to come."""
        return self._end - self._at

    async def read(self) -> bytes:
        """Return the next piece, b"" at the end. Raises BlobMissing when it was deleted since."""
        piece = await self._blobs.read(self._path, self._at, min(PIECE, self.left))
        self._at += len(piece)
        return piece


class Writer:
    """A blob on its way into the store."""

    def __init__(self, blobs: Blobs, file: obstore.WritableFile) -> None:
        """Made by `Blobs.writer` only."""
        self._blobs = blobs
        self._file = file
        self._waiting: list[bytes] = []
        self.size = 0  # bytes written so far
        self.sent = 0  # of these, what the store has been given

    async def write(self, content: bytes) -> None:
        """Add to the blob."""
        self._waiting.append(content)
        self.size += len(content)
        if self.size - self.sent >= PIECE:
            await self.flush()

    async def flush(self) -> None:
        """Hand what waits to the store, which has buffers of its own."""
        if self._waiting:
            content, self._waiting = b"".join(self._waiting), []
            self.sent += len(content)
            await self._blobs.call(self._file.write, content)


def _checked(path: str) -> str:
    """Return a path that stays inside the store and means the same in any."""
    if not _PATH.fullmatch(path):
        raise ValueError("not a path of a blob")
    return path
