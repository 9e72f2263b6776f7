"""What a batch's input must be, line by line: every rule that is looked at before anything runs."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import orjson

from trio_gateway.core.batches import (
    MOST_CUSTOM_ID,
    MOST_ERRORS,
    MOST_LINES,
    PURPOSE,
    Line,
    LineError,
)
from trio_gateway.dialects.strict_json import CROWDED, crowded

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from trio_gateway.dialects.batch_lines import RawLine

METHOD = "POST"
MOST_ECHO = 100  # characters of a caller's value in a message

_ENVELOPE = (
    ("custom_id", "Custom_id", str, "a string"),
    ("method", "Method", str, "a string"),
    ("url", "URL", str, "a string"),
    ("body", "Body", dict, "a JSON dictionary object"),
)
_KNOWN = frozenset(name for name, *_ in _ENVELOPE)
_FOLDED = {name.casefold(): name for name in _KNOWN}
_QUOTED = tuple((name, b'"%b"' % name.encode()) for name, *_ in _ENVELOPE)
_BODY = b'"body"'
_STRINGS = 3
_QUOTES = 4 * _STRINGS
_SUSPECT = re.compile(rb"\\u00(?:5[fF]|6|7)")  # an underscore or a small letter


def _spellings(name: str) -> re.Pattern[bytes]:
    """Match the quoted name, be any of its letters escaped or not."""
    letters = (rf"(?:{letter}|\\u00(?i:{ord(letter):02x}))" for letter in name)
    return re.compile(f'"{"".join(letters)}"'.encode())


_SPELLINGS = tuple((_spellings(name), quoted) for name, quoted in _QUOTED)


def _is_text(value: Any) -> bool:
    return type(value) is str


def _is_list(value: Any) -> bool:
    return type(value) is list


def _is_prompt(value: Any) -> bool:
    """Whether the value is one prompt; the live endpoint takes a list of one as well."""
    return _is_text(value) or (_is_list(value) and len(value) == 1 and _is_text(value[0]))


def _is_input(value: Any) -> bool:
    return _is_text(value) or (_is_list(value) and all(map(_is_text, value)))


_MODEL = ("model", _is_text, "a string")
# What an endpoint's body must have beside the model, and what that must be.
_CONTENT: dict[str, tuple[str, Callable[[Any], bool], str]] = {
    "/v1/chat/completions": ("messages", _is_list, "an array"),
    "/v1/completions": ("prompt", _is_prompt, "a string"),
    "/v1/embeddings": ("input", _is_input, "a string or array of strings"),
}


def cannot_find(file_id: str) -> LineError:
    """Word a file that is missing, deleted, expired or another tenant's: all the same."""
    shown = _shown(file_id)
    return LineError("invalid_request", f"Cannot find file {shown}.", "input_file_id")


def not_for_batches() -> LineError:
    """Word a file that was uploaded for something else."""
    message = f"The input file must have been uploaded with the purpose '{PURPOSE}'."
    return LineError("invalid_request", message, "input_file_id")


def broken() -> LineError:
    """Word a validation that failed for no fault of the file."""
    return LineError("internal_error", "The batch could not be validated.")


@dataclass(frozen=True, slots=True)
class Rules:
    """What holds for every line of one file.

    `find` returns the canonical name of a model, or None where there is none to use; `most` is
    the longest line allowed, in bytes.
    """

    endpoint: str
    find: Callable[[str], str | None]
    most: int


@dataclass(frozen=True, slots=True)
class Faulty:
    """A line that cannot be a request; its `custom_id`, if it is one, is taken all the same."""

    custom_id: str | None
    errors: list[LineError]


class Inspection:
    """The check of one file; give it every line in order, then ask for the `verdict`."""

    def __init__(self, rules: Rules) -> None:
        """Begin with no line seen."""
        self.total = 0  # lines that are not blank
        self.models: dict[str, None] = {}  # canonical, in the order of their first lines
        self.errors: list[LineError] = []
        self.over = False  # whether nothing that follows can matter
        self._rules = rules
        self._seen: set[bytes] = set()  # digests of custom_ids, which may be long

    def check(self, raw: RawLine) -> Line | None:
        """Return the line, or None where it has errors."""
        self.total += 1
        if self.total > MOST_LINES:
            self._add([_too_many()])
            self.over = True
            return None
        found = check_line(raw, self._rules)
        line, errors = (None, found.errors) if isinstance(found, Faulty) else (found, [])
        if found.custom_id is not None and self._repeats(found.custom_id):
            line, errors = None, [_duplicate(raw.number), *errors]
        if line is None:
            self._add(errors)
        else:
            self.models[line.model] = None
        return line

    def verdict(self) -> list[LineError]:
        """Return what is wrong with the file, at most MOST_ERRORS of it."""
        return self.errors if self.total else [_empty()]

    def _repeats(self, custom_id: str) -> bool:
        known = len(self._seen)
        self._seen.add(hashlib.blake2b(custom_id.encode(), digest_size=16).digest())
        return len(self._seen) == known

    def _add(self, errors: list[LineError]) -> None:
        self.errors += errors[: MOST_ERRORS - len(self.errors)]
        self.over = len(self.errors) >= MOST_ERRORS


def check_line(raw: RawLine, rules: Rules) -> Line | Faulty:
    """Check one line by itself; its errors come in the order of its fields."""
    if raw.text is None:
        message = f"This line is longer than the limit of {rules.most:,} bytes."
        return Faulty(None, [LineError("invalid_request", message, None, raw.number)])
    if crowded(raw.text):
        message = f"This line holds {CROWDED}."
        return Faulty(None, [LineError("invalid_request", message, None, raw.number)])
    try:
        request, unclear = _read(raw.text)
    except orjson.JSONDecodeError:
        message = "This line is not parseable as valid JSON."
        return Faulty(None, [LineError("invalid_json_line", message, None, raw.number)])
    if type(request) is not dict:
        message = "Each line must be a JSON dictionary object"
        return Faulty(None, [LineError("invalid_request", message, None, raw.number)])
    body = request.get("body")
    model, body_errors = _checked_body(body, rules) if type(body) is dict else (None, [])
    errors = [*_envelope_errors(request, rules.endpoint, unclear), *body_errors]
    custom_id = _usable(request.get("custom_id"))
    if errors or custom_id is None or model is None:
        return Faulty(custom_id, [replace(error, line=raw.number) for error in errors])
    return Line(raw.number, custom_id, model, raw.start, raw.length)


def _read(text: bytes) -> tuple[Any, dict[str, str]]:
    """Return what a line holds, and by name what is wrong with how its fields are spelled.

    Raises orjson.JSONDecodeError.
    """
    request = _usual(text)
    if request is None:
        request = orjson.loads(text)
        if type(request) is dict:
            return request, _twins(request) | _repeats(text, request)
    return request, {}


def _usual(text: bytes) -> dict[str, Any] | None:
    """Return the object of a line as clients write it, the body last; None for any other.

    Read in two pieces it takes no longer than in one. What is JSON from the body's colon to the
    last brace leaves no field behind it; three strings and their names have twelve quotes, and
    a field that stands twice would have more.
    """
    at = text.find(_BODY)
    if at < 0 or not text.endswith(b"}") or text.count(b'"', 0, at) != _QUOTES:
        return None
    try:
        request: dict[str, Any] = orjson.loads(text[:at] + b'"body":0}')
        if request.keys() != _KNOWN or [*map(type, request.values())].count(str) != _STRINGS:
            return None
        request["body"] = orjson.loads(memoryview(text)[text.find(b":", at) + 1 : -1])
    except orjson.JSONDecodeError:
        return None
    return request


def _twins(request: dict[str, Any]) -> dict[str, str]:
    """Return what is wrong with fields that differ from a known one only in letter case."""
    if request.keys() <= _KNOWN:
        return {}
    folded = {key.casefold() for key in request.keys() - _KNOWN}
    return {
        name: f"'{name}' must be spelled in its exact letter case"
        for fold, name in _FOLDED.items()
        if fold in folded
    }


def _repeats(text: bytes, request: dict[str, Any]) -> dict[str, str]:
    """Return what is wrong with known fields that stand twice; `request` is what `text` holds."""
    if _SUSPECT.search(text):
        for spellings, quoted in _SPELLINGS:
            text = spellings.sub(quoted, text)
    return {
        name: f"'{name}' appears twice"
        for name, quoted in _QUOTED
        if text.count(quoted) > 1 and _stands_twice(text, quoted, request)
    }


def _stands_twice(text: bytes, quoted: bytes, request: dict[str, Any]) -> bool:
    """Whether the outermost object has the field twice.

    Each quoted name is made a new one, which leaves the structure what it is, so that no key
    overrides another. That takes neither a recursion nor a scan in Python.
    """
    head, *rest = text.split(quoted)
    marked = b"".join([b'"\x7f%d"%b' % (at, part) for at, part in enumerate(rest)])
    return len(orjson.loads(head + marked).keys() - request.keys()) > 1


def _envelope_errors(
    request: dict[str, Any], endpoint: str, unclear: dict[str, str]
) -> Iterator[LineError]:
    for name, title, kind, wanted in _ENVELOPE:
        if name in unclear:
            yield LineError("invalid_request", unclear[name], name)
        elif name not in request:
            message = f"Missing required parameter: {name}"
            yield LineError("missing_required_parameter", message, name)
        elif type(request[name]) is not kind:
            yield LineError("invalid_request", f"{title} must be {wanted}", name)
        elif name == "custom_id" and (fault := _custom_id_fault(request[name])):
            yield LineError("invalid_request", fault, name)
        elif name == "method" and request[name] != METHOD:
            yield LineError("invalid_request", f"Method must be {METHOD}", name)
    url = request.get("url")
    if type(url) is str and url != endpoint:
        message = "URL provided for this request does not match the batch endpoint"
        yield LineError("invalid_url", message, "url")


def _custom_id_fault(custom_id: str) -> str | None:
    if not custom_id:
        return "Custom_id must not be empty"
    if len(custom_id) > MOST_CUSTOM_ID:
        return f"Custom_id must be at most {MOST_CUSTOM_ID} characters long"
    return "Custom_id must not hold NUL characters" if "\0" in custom_id else None


def _usable(custom_id: Any) -> str | None:
    return custom_id if type(custom_id) is str and _custom_id_fault(custom_id) is None else None


def _checked_body(body: dict[str, Any], rules: Rules) -> tuple[str | None, list[LineError]]:
    """Return the canonical model, if there is one to use, and what is wrong with the body."""
    errors = []
    if body.get("stream"):
        message = "Streaming is not supported in batch processing"
        errors.append(LineError("streaming_unsupported", message, "body.stream"))
    for name, fits, wanted in (_MODEL, _CONTENT[rules.endpoint]):
        if name not in body:
            message = f"{name.capitalize()} parameter is required"
            errors.append(LineError("invalid_request", message, f"body.{name}"))
        elif not fits(body[name]):
            message = f"{name.capitalize()} must be {wanted}"
            errors.append(LineError("invalid_request", message, f"body.{name}"))
    given = body.get("model")
    if type(given) is not str:
        return None, errors
    model = rules.find(given)
    if model is None:
        message = f"Model '{_shown(given)}' does not exist or is not supported by the Batch API."
        errors.append(LineError("model_not_found", message, "body.model"))
    return model, errors


def _duplicate(number: int) -> LineError:
    message = (
        "The custom_id of this request is a duplicate of another request;"
        " it must be unique in the file."
    )
    return LineError("duplicate_custom_id", message, "custom_id", number)


def _too_many() -> LineError:
    return LineError("too_many_tasks", f"A batch can have at most {MOST_LINES:,} requests.")


def _empty() -> LineError:
    return LineError("empty_file", "The input file holds no requests.")


def _shown(value: str) -> str:
    """Return the beginning of a caller's value, fit to be stored and printed."""
    return "".join(sign if sign.isprintable() else "\ufffd" for sign in value[:MOST_ECHO])
