"""/v1/files: what a form and a query may say, and the file in OpenAI's shape."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl, quote

import orjson

from trio_gateway.core.errors import InvalidCall
from trio_gateway.dialects.strict_json import parse_object

if TYPE_CHECKING:
    from collections.abc import Sequence

    from trio_gateway.core.batches import StoredFile

PURPOSES = ("assistants", "batch", "fine-tune", "vision", "user_data", "evals")  # of uploads
LISTED = (*PURPOSES, "assistants_output", "batch_output", "fine-tune-results")
LEAST_SECONDS, MOST_SECONDS = 3600, 2_592_000
BATCH_SECONDS = 2_592_000  # what a batch's input lives where nothing is said
PAGE = 10_000
MOST_NAME = 255  # bytes of a file's name in UTF-8
NO_NAME = "uploaded_file"
ANCHOR, SECONDS = "expires_after[anchor]", "expires_after[seconds]"
FIELDS = frozenset({"purpose", "expires_after", ANCHOR, SECONDS})

_LIMIT = re.compile(r"[0-9]{1,5}", re.ASCII)
_SECONDS = re.compile(r"[0-9]{1,10}", re.ASCII)
# Control characters, and those that change the direction of what is shown.
_UNPRINTABLE = re.compile(
    r"[\x00-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff\ud800-\udfff]"
)
_PLAIN = re.compile(r"[^A-Za-z0-9._ -]")
_MOST_QUERY_FIELDS = 32
_BOM = b"\xef\xbb\xbf"
_BLANK = b" \t\r\n"
_LONGEST_LINE = 1024 * 1024  # bytes of a first line that is looked at


@dataclass(frozen=True, slots=True)
class Page:
    """Which part of the list is wanted, in which order (`asc` or `desc`)."""

    purpose: str | None = None
    limit: int = PAGE
    order: str = "desc"
    after: str | None = None


@dataclass(frozen=True, slots=True)
class Form:
    """What the fields of an upload say of its file."""

    purpose: str
    lives: int | None  # seconds, None for ever


def parse_page(query: bytes) -> Page:
    """Parse the query of a list; unknown fields are ignored. Raises InvalidCall."""
    try:
        pairs = parse_qsl(
            query.decode("ascii"), keep_blank_values=True, max_num_fields=_MOST_QUERY_FIELDS
        )
    except ValueError:
        raise InvalidCall("The query string is malformed.") from None
    given: dict[str, str] = {}
    for name, value in pairs:
        if name in given and name in {"purpose", "limit", "order", "after"}:
            raise InvalidCall(f"'{name}' appears twice.", param=name)
        given[name] = value
    limit = given.get("limit", str(PAGE))
    if not _LIMIT.fullmatch(limit) or not 1 <= int(limit) <= PAGE:
        raise InvalidCall(f"'limit' must be an integer from 1 to {PAGE}.", param="limit")
    order = given.get("order", "desc")
    if order not in {"asc", "desc"}:
        raise InvalidCall("'order' must be 'asc' or 'desc'.", param="order")
    purpose = given.get("purpose")
    if purpose is not None and purpose not in LISTED:
        raise InvalidCall(_one_of("purpose", LISTED), param="purpose")
    return Page(purpose, int(limit), order, given.get("after"))


def parse_form(fields: dict[str, str]) -> Form:
    """Read the fields of FIELDS that an upload has. Raises InvalidCall."""
    purpose = fields.get("purpose")
    if purpose is None:
        raise InvalidCall("'purpose' is a required field.", param="purpose")
    check_purpose(purpose)
    lives = _lives(fields)
    return Form(purpose, BATCH_SECONDS if lives is None and purpose == "batch" else lives)


def check_purpose(purpose: str) -> None:
    """Raise InvalidCall for a purpose that no upload may have."""
    if purpose not in PURPOSES:
        raise InvalidCall(_one_of("purpose", PURPOSES), param="purpose")


def _one_of(name: str, values: Sequence[str]) -> str:
    return f"'{name}' must be one of {', '.join(values)}."


def _lives(fields: dict[str, str]) -> int | None:
    """Read expires_after, which comes as two fields or as one that holds JSON."""
    if "expires_after" in fields:
        if ANCHOR in fields or SECONDS in fields:
            raise InvalidCall("'expires_after' is given in two ways.", param="expires_after")
        return _from_json(fields["expires_after"])
    if ANCHOR not in fields and SECONDS not in fields:
        return None
    for name in (ANCHOR, SECONDS):
        if name not in fields:
            raise InvalidCall(f"'{name}' is missing.", param=name)
    digits = _SECONDS.fullmatch(fields[SECONDS])
    return _expiry(fields[ANCHOR], int(digits[0]) if digits else None, (ANCHOR, SECONDS))


def _from_json(text: str) -> int:
    known = frozenset({"anchor", "seconds"})
    try:
        raw: dict[str, Any] = parse_object(text.encode(), known)
    except InvalidCall:
        raise InvalidCall("'expires_after' must be a JSON object.", param="expires_after") from None
    return _expiry(raw.get("anchor"), raw.get("seconds"), ("expires_after",) * 2)


def _expiry(anchor: object, seconds: object, names: tuple[str, str]) -> int:
    if anchor != "created_at":
        raise InvalidCall("The anchor of 'expires_after' must be 'created_at'.", param=names[0])
    if type(seconds) is not int or not LEAST_SECONDS <= seconds <= MOST_SECONDS:
        raise InvalidCall(
            "The seconds of 'expires_after' must be an integer from"
            f" {LEAST_SECONDS} to {MOST_SECONDS}.",
            param=names[1],
        )
    return seconds


def clean_name(name: str | None) -> str:
    """Return a file's name without folders and without what cannot be shown, never empty."""
    last = re.split(r"[/\\]", name or "")[-1]
    shown = _UNPRINTABLE.sub("", last).strip()
    short = shown.encode()[:MOST_NAME].decode(errors="ignore")
    if short != shown and "." in shown:  # the ending says what it is
        ending = "." + shown.rsplit(".", 1)[1]
        if len(ending.encode()) <= MOST_NAME // 4:
            room = MOST_NAME - len(ending.encode())
            short = shown.encode()[:room].decode(errors="ignore") + ending
    return NO_NAME if short in {"", ".", ".."} else short


class FirstLine:
    """Looks at the first line of a file that passes by, to tell JSONL from anything else."""

    __slots__ = ("_begun", "_empty", "_kept", "_searched", "_verdict")

    def __init__(self) -> None:
        """Begin before the first byte."""
        self._kept = bytearray()
        self._empty = True
        self._begun = False  # past the BOM
        self._searched = 0
        self._verdict: bool | None = None

    def feed(self, piece: bytes) -> None:
        """Take the next piece."""
        if self._verdict is not None:
            return
        self._empty = self._empty and not piece
        self._kept += piece
        if not self._begun:
            if len(self._kept) < len(_BOM):
                return
            self._begin()
        self._skip_blanks()
        end = self._kept.find(b"\n", self._searched)
        if end >= 0:
            self._decide(bytes(self._kept[:end]))
        elif len(self._kept) > _LONGEST_LINE:
            self._verdict = True  # too long to be kept here: whoever reads the file will see
            self._kept.clear()
        self._searched = len(self._kept)

    def check(self) -> None:
        """Raise InvalidCall, at the file's end, where it cannot be JSONL: blank lines alone can."""
        if self._empty:
            raise not_jsonl("the file is empty")
        if self._verdict is None:
            self._begin()
            self._skip_blanks()
            if self._kept:
                self._decide(bytes(self._kept))
        if self._verdict is False:
            raise not_jsonl("the first line is not valid JSON")

    def _begin(self) -> None:
        if not self._begun and self._kept.startswith(_BOM):
            del self._kept[: len(_BOM)]
        self._begun = True

    def _skip_blanks(self) -> None:
        if not self._searched:
            self._kept = self._kept.lstrip(_BLANK)

    def _decide(self, line: bytes) -> None:
        try:
            orjson.loads(line)
        except orjson.JSONDecodeError:
            self._verdict = False
        else:
            self._verdict = True
        self._kept.clear()


def check_batch_name(filename: str) -> None:
    """Raise InvalidCall where a file for a batch is not named `*.jsonl`."""
    if not filename.lower().endswith(".jsonl"):
        raise not_jsonl("the file's name does not end in .jsonl")


def not_jsonl(why: str) -> InvalidCall:
    """Return the error for what cannot be a batch's input: words that clients know, and why."""
    return InvalidCall(f"Invalid file format for Batch API. Must be .jsonl: {why}.")


def render(file: StoredFile) -> bytes:
    """Encode a file's object."""
    return orjson.dumps(_shape(file))


def render_list(files: Sequence[StoredFile], *, has_more: bool) -> bytes:
    """Encode one page of the list; an empty one has empty ids."""
    return orjson.dumps(
        {
            "object": "list",
            "data": [_shape(file) for file in files],
            "first_id": files[0].id if files else "",
            "last_id": files[-1].id if files else "",
            "has_more": has_more,
        }
    )


def render_deleted(file_id: str) -> bytes:
    """Encode the answer to a delete."""
    return orjson.dumps({"id": file_id, "object": "file", "deleted": True})


def disposition(filename: str) -> str:
    """Return a Content-Disposition (RFC 6266) that any name can stand in."""
    plain = _PLAIN.sub("_", filename)
    header = f'attachment; filename="{plain}"'
    return header if plain == filename else f"{header}; filename*=UTF-8''{quote(filename, safe='')}"


def _shape(file: StoredFile) -> dict[str, Any]:
    return {
        "id": file.id,
        "object": "file",
        "bytes": file.bytes,
        "created_at": int(file.created_at.timestamp()),
        "expires_at": int(file.expires_at.timestamp()) if file.expires_at else None,
        "filename": file.filename,
        "purpose": file.purpose,
        "status": "processed",
        "status_details": None,
    }
