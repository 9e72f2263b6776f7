"""An upload: a multipart body, taken apart on its way into the blob store.

The parts may come in any order. A form that cannot be right is refused as soon as that shows,
and whatever ends an upload early leaves neither a file nor a blob.
"""

from __future__ import annotations

from collections import Counter
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import trio
from werkzeug.http import parse_options_header

from trio_gateway.core.batches import StoredFile
from trio_gateway.core.errors import (
    CallTooLarge,
    InvalidCall,
    Overloaded,
    StoreUnavailable,
    UnsupportedMedia,
)
from trio_gateway.dialects import openai_files
from trio_gateway.services.files.files import blob_of, new_file_id
from trio_gateway.web import multipart

if TYPE_CHECKING:
    from collections.abc import Iterator

    from werkzeug.sansio.multipart import Event

    from trio_gateway.clients.blobs import Writer
    from trio_gateway.services.files.files import Files
    from trio_gateway.services.live import Leash
    from trio_gateway.web.connection import Request
    from trio_gateway.web.feed import Feed
    from trio_gateway.web.gateway import Gateway

AT_ONCE = 16  # uploads of one worker
TENANT_AT_ONCE = 4  # of these, one tenant's
RETRY = 5.0  # seconds
AROUND = 1024 * 1024  # bytes of a body beside its file
MOST_FIELD = 4096  # bytes
MOST_BOUNDARY = 200  # characters; RFC 2046 allows 70
ABANDON_LIMIT = 2.0  # seconds


class Berths:
    """Room for the uploads of one worker."""

    def __init__(self) -> None:
        """Begin with all of it free."""
        self._taken: Counter[str] = Counter()

    @contextmanager
    def take(self, tenant_id: str) -> Iterator[None]:
        """Occupy one berth for the block. Raises Overloaded where none is free."""
        if self._taken.total() >= AT_ONCE or self._taken[tenant_id] >= TENANT_AT_ONCE:
            raise Overloaded("Too many uploads at once; try again shortly.", retry_after=RETRY)
        self._taken[tenant_id] += 1
        try:
            yield
        finally:
            self._taken[tenant_id] -= 1
            self._taken += Counter()  # forgets tenants that have none


async def take_in(gateway: Gateway, asked: Request, leash: Leash, feed: Feed) -> StoredFile:
    """Store the upload and return its file. Raises the refusals, and BodyTimeout."""
    boundary = _boundary(asked.headers.get("content-type"))
    most = gateway.settings.max_file_bytes
    if (asked.content_length or 0) > most + AROUND:
        raise _too_large(most)
    tenant_id, file_id = leash.principal.tenant.id, new_file_id()
    blob = blob_of(tenant_id, file_id)
    with gateway.berths.take(tenant_id), leash.cover():
        room = await gateway.files.reserve(tenant_id, blob)
        try:
            async with gateway.blobs.writer(blob) as writer:
                parts = _Parts(writer, most, room, gateway.files)
                await _take_apart(feed, boundary, parts)
                form = parts.form()
            file = _file(file_id, tenant_id, blob, parts, form)
            await gateway.files.keep(file)
        except BaseException:
            with trio.move_on_after(ABANDON_LIMIT, shield=True), suppress(StoreUnavailable):
                await gateway.files.abandon(blob)
            raise
    return file


def _file(
    file_id: str, tenant_id: str, blob: str, parts: _Parts, form: openai_files.Form
) -> StoredFile:
    now = datetime.now(UTC)
    return StoredFile(
        id=file_id,
        tenant_id=tenant_id,
        purpose=form.purpose,
        filename=parts.filename or openai_files.NO_NAME,
        bytes=parts.size,
        blob=blob,
        created_at=now,
        expires_at=None if form.lives is None else now + timedelta(seconds=form.lives),
    )


def _boundary(content_type: str | None) -> bytes:
    kind, options = parse_options_header(content_type)
    if kind.lower() != "multipart/form-data":
        raise UnsupportedMedia("An upload must be multipart/form-data.")
    boundary = options.get("boundary", "")
    if not 0 < len(boundary) <= MOST_BOUNDARY or not boundary.isascii():
        raise InvalidCall("The Content-Type of the upload names no usable boundary.")
    return boundary.encode()


def _too_large(most: int) -> CallTooLarge:
    return CallTooLarge(f"The file is larger than the limit of {most} bytes.", param="file")


async def _take_apart(feed: Feed, boundary: bytes, parts: _Parts) -> None:
    """Read the body to its end and give its parts on."""
    decoder = multipart.Decoder(boundary)
    taken, piece = 0, b"-"
    while piece:
        piece = await feed.take()
        taken += len(piece)
        for event in decoder.feed(piece):
            await parts.add(event)
        if taken - parts.size > AROUND:
            raise CallTooLarge("What the form holds beside the file is too large.")


class _Parts:
    """What has come of a form so far; the file goes through to its writer."""

    def __init__(self, writer: Writer, most: int, room: int, files: Files) -> None:
        self.filename: str | None = None
        self.size = 0
        self._writer = writer
        self._most = most
        self._room = room
        self._files = files
        self._first = openai_files.FirstLine()
        self._fields: dict[str, str] = {}
        self._text = bytearray()
        self._name: str | None = None  # of the part that is coming, None for one not looked at

    async def add(self, event: Event) -> None:
        """Take the next event of the decoder."""
        if isinstance(event, multipart.Field):
            self._begin(event.name, None)
        elif isinstance(event, multipart.File):
            self._begin(event.name, event.filename)
        elif isinstance(event, multipart.Data):
            if self._name == "file":
                await self._add_to_file(event.data)
            elif self._name is not None:
                self._add_to_field(self._name, event)

    def form(self) -> openai_files.Form:
        """Return what the complete form says. Raises InvalidCall."""
        form = openai_files.parse_form(self._fields)
        if self.filename is None:
            raise InvalidCall("'file' is a required field.", param="file")
        if form.purpose == "batch":
            self._first.check()
        return form

    def _begin(self, name: str | None, filename: str | None) -> None:
        self._name = name if name == "file" or name in openai_files.FIELDS else None
        if name == "file":
            if self.filename is not None:
                raise InvalidCall("'file' appears twice: one file at a time.", param="file")
            self.filename = openai_files.clean_name(filename)
            self._check_name()
        elif self._name is not None:
            if self._name in self._fields:
                raise InvalidCall(f"'{self._name}' appears twice.", param=self._name)
            self._text.clear()

    async def _add_to_file(self, piece: bytes) -> None:
        self.size += len(piece)
        if self.size > self._most:
            raise _too_large(self._most)
        if self.size > self._room:
            raise self._files.full()
        self._first.feed(piece)
        await self._writer.write(piece)

    def _add_to_field(self, name: str, event: multipart.Data) -> None:
        self._text += event.data
        if len(self._text) > MOST_FIELD:
            raise InvalidCall(f"'{name}' is too long.", param=name)
        if event.more_data:
            return
        try:
            self._fields[name] = self._text.decode()
        except UnicodeDecodeError:
            raise InvalidCall(f"'{name}' is not UTF-8.", param=name) from None
        if name == "purpose":
            openai_files.check_purpose(self._fields[name])
            self._check_name()

    def _check_name(self) -> None:
        if self._fields.get("purpose") == "batch" and self.filename is not None:
            openai_files.check_batch_name(self.filename)
