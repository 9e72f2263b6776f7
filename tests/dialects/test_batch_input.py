"""What a batch's input must be: how it is split, and every fault with its code and words."""

from __future__ import annotations

import itertools
import json
import re
import tracemalloc
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trio_gateway.core.batches import MOST_ERRORS, MOST_LINES, Line, LineError
from trio_gateway.dialects.batch_input import Inspection, Rules, cannot_find
from trio_gateway.dialects.batch_lines import BOM, LineSplitter, RawLine
from trio_gateway.dialects.strict_json import MAX_MARKS

CHAT, COMPLETIONS, EMBEDDINGS = "/v1/chat/completions", "/v1/completions", "/v1/embeddings"
CONTENT: dict[str, dict[str, Any]] = {
    CHAT: {"messages": [{"role": "user", "content": "Hello"}]},
    COMPLETIONS: {"prompt": "Hello"},
    EMBEDDINGS: {"input": "Hello"},
}
MOST = 10_000  # bytes of a line


def find(name: str) -> str | None:
    """Know two spellings of one model."""
    return {"m": "m:latest", "m:latest": "m:latest", "n": "n:latest"}.get(name)


def request(endpoint: str = CHAT, custom_id: str = "c-1", **changes: Any) -> dict[str, Any]:
    """Return a request without a fault, with some of its fields changed."""
    shape = {
        "custom_id": custom_id,
        "method": "POST",
        "url": endpoint,
        "body": {"model": "m"} | CONTENT[endpoint],
    }
    return shape | changes


def split(*pieces: bytes, most: int = MOST) -> list[RawLine]:
    """Return all lines of a file that comes in pieces."""
    splitter = LineSplitter(most)
    lines = [line for piece in pieces for line in splitter.feed(piece)]
    return lines + list(splitter.close())


def inspect(content: bytes, endpoint: str = CHAT) -> tuple[list[Line], list[LineError]]:
    """Return the requests of a file and what is wrong with it."""
    inspection = Inspection(Rules(endpoint, find, MOST))
    lines = [line for raw in split(content) if (line := inspection.check(raw)) is not None]
    return lines, inspection.verdict()


def fault(shape: Any, endpoint: str = CHAT) -> tuple[str, str, str | None]:
    """Return code, message and param of the one fault of a request, in line 1."""
    lines, errors = inspect(orjson.dumps(shape), endpoint)
    (error,) = errors
    assert (lines, error.line) == ([], 1)
    return error.code, error.message, error.param


# ---- lines


def test_only_a_line_feed_ends_a_line():
    """Other characters that some call line breaks may stand raw in a JSON string."""
    texts = ["a\u2028b", "a\u2029b", "a\x85b", "a\vb", "a\fb", "a\rb", "a\x1cb"]
    content = "\n".join(texts).encode()
    assert [line.text for line in split(content)] == [text.encode() for text in texts]


def test_line_ends_of_other_systems_and_a_mark_at_the_beginning_are_no_text():
    """A carriage return before the break and one leading byte order mark are left out."""
    content = BOM + b'{"a":1}\r\n{"b":2}\r\n' + BOM + b"{}"
    lines = split(content)
    assert [line.text for line in lines] == [b'{"a":1}', b'{"b":2}', BOM + b"{}"]
    for line in lines:
        assert content[line.start : line.start + line.length] == line.text


@pytest.mark.parametrize("blank", [b"", b" ", b"\t \r", b"\r", b"\v", b"\f\f"])
def test_blank_lines_are_counted_and_left_out(blank):
    """Numbers are those an editor shows."""
    content = b"\n".join([blank, blank, b"{}", blank, b"[]", blank, blank])
    lines = split(content)
    assert [(line.number, line.text) for line in lines] == [(3, b"{}"), (5, b"[]")]


@pytest.mark.parametrize("content", [b"", b"\n", b"\n\n \n", BOM, BOM + b"\r\n", b"  "])
def test_a_file_without_text_has_no_lines(content):
    """Nothing, blanks and a lone mark are all empty."""
    assert split(content) == []


@pytest.mark.parametrize("end", [b"", b"\n", b"\r\n", b"\r"])
def test_the_last_line_counts_with_and_without_its_break(end):
    """A file need not end with a line break."""
    assert split(b"{}\n[1]" + end)[-1] == RawLine(2, 3, 3, b"[1]")


def reference(content: bytes, most: int) -> list[RawLine]:
    """Split a whole file the simple way."""
    lines, start = [], 0
    for number, part in enumerate(content.split(b"\n"), 1):
        mark = len(BOM) if number == 1 and part.startswith(BOM) else 0
        text = part[mark:].removesuffix(b"\r")
        if text.strip():
            kept = text if len(text) <= most else None
            lines.append(RawLine(number, start + mark, len(text), kept))
        start += len(part) + 1
    return lines


@given(
    st.booleans(),
    st.lists(st.sampled_from([b"\n", b"\r", b"\n\n", b" ", b"{}", b"ab", b"abc\r\n", BOM[:2]])),
    st.lists(st.integers(min_value=0, max_value=60)),
)
def test_it_does_not_matter_where_pieces_break(marked, parts, cuts):
    """Any cut of a file into pieces yields the lines of the whole."""
    content = (BOM if marked else b"") + b"".join(parts)
    places = sorted({0, len(content), *(cut for cut in cuts if cut < len(content))})
    pieces = [content[a:b] for a, b in itertools.pairwise(places)]
    lines = split(*pieces, most=4)
    expected = reference(content, 4)
    assert [(line.number, line.text) for line in lines] == [
        (line.number, line.text) for line in expected
    ]
    for line, other in zip(lines, expected, strict=True):
        assert line.text is None or line == other


def test_a_line_at_the_limit_passes_and_one_byte_more_is_too_long():
    """The bound is of the text alone: break, carriage return and mark are not counted."""
    content = BOM + b"x" * MOST + b"\r\n" + b"y" * (MOST + 1) + b"\r\nz"
    assert [line.text for line in split(content)] == [b"x" * MOST, None, b"z"]


def test_a_line_that_is_too_long_is_not_kept_in_memory():
    """A hundred times the limit passes through; the lines behind it are found."""
    splitter, piece = LineSplitter(MOST), b"x" * MOST
    tracemalloc.start()
    try:
        for _ in range(1000):
            assert list(splitter.feed(piece)) == []
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 20 * MOST
    lines = list(splitter.feed(b"\n{}\n"))
    assert [(line.number, line.start, line.text) for line in lines] == [
        (1, 0, None),
        (2, 1000 * MOST + 1, b"{}"),
    ]


# ---- one line


@pytest.mark.parametrize("endpoint", CONTENT)
def test_a_request_without_a_fault_is_a_line(endpoint):
    """Its canonical model and its place in the file are what the engine needs."""
    text = orjson.dumps(request(endpoint))
    assert inspect(b"\n" + text + b"\r\n", endpoint) == (
        [Line(2, "c-1", "m:latest", 1, len(text))],
        [],
    )


@pytest.mark.parametrize("name", ["custom_id", "method", "url", "body"])
@pytest.mark.parametrize("endpoint", CONTENT)
def test_a_missing_field_is_named(endpoint, name):
    """One error each, and a missing body is only that."""
    shape = request(endpoint)
    del shape[name]
    expected = ("missing_required_parameter", f"Missing required parameter: {name}", name)
    assert fault(shape, endpoint) == expected


@pytest.mark.parametrize(
    ("endpoint", "name", "title"),
    [
        (CHAT, "model", "Model"),
        (CHAT, "messages", "Messages"),
        (COMPLETIONS, "model", "Model"),
        (COMPLETIONS, "prompt", "Prompt"),
        (EMBEDDINGS, "model", "Model"),
        (EMBEDDINGS, "input", "Input"),
    ],
)
def test_a_missing_field_of_the_body_is_named(endpoint, name, title):
    """The param is the path."""
    shape = request(endpoint)
    del shape["body"][name]
    expected = ("invalid_request", f"{title} parameter is required", f"body.{name}")
    assert fault(shape, endpoint) == expected


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("custom_id", 12345, "Custom_id must be a string"),
        ("custom_id", None, "Custom_id must be a string"),
        ("url", 123, "URL must be a string"),
        ("method", ["POST"], "Method must be a string"),
        ("body", ["not", "valid"], "Body must be a JSON dictionary object"),
        ("body", "{}", "Body must be a JSON dictionary object"),
    ],
)
def test_a_field_of_another_type_is_named(name, value, message):
    """The rule is said, the value is not."""
    assert fault(request(**{name: value})) == ("invalid_request", message, name)


@pytest.mark.parametrize(
    ("endpoint", "name", "value", "message"),
    [
        (CHAT, "model", 123, "Model must be a string"),
        (CHAT, "messages", "invalid messages format", "Messages must be an array"),
        (COMPLETIONS, "prompt", 5, "Prompt must be a string"),
        (COMPLETIONS, "prompt", ["a", "b"], "Prompt must be a string"),
        (EMBEDDINGS, "input", {"a": 1}, "Input must be a string or array of strings"),
        (EMBEDDINGS, "input", [1, 2], "Input must be a string or array of strings"),
    ],
)
def test_a_field_of_the_body_of_another_type_is_named(endpoint, name, value, message):
    """One error each."""
    shape = request(endpoint)
    shape["body"][name] = value
    assert fault(shape, endpoint) == ("invalid_request", message, f"body.{name}")


@pytest.mark.parametrize("value", ["a", ["a"], ["a", "b"]])
def test_an_input_is_a_text_or_several(value):
    """Both forms of an embeddings request pass."""
    shape = request(EMBEDDINGS, body={"model": "m", "input": value})
    assert inspect(orjson.dumps(shape), EMBEDDINGS)[1] == []


def test_a_prompt_may_be_a_list_of_one():
    """What the live endpoint takes, a batch takes."""
    shape = request(COMPLETIONS, body={"model": "m", "prompt": ["a"]})
    assert inspect(orjson.dumps(shape), COMPLETIONS)[1] == []


@pytest.mark.parametrize("method", ["GET", "post", ""])
def test_the_method_is_post(method):
    """Any other is refused."""
    assert fault(request(method=method)) == ("invalid_request", "Method must be POST", "method")


@pytest.mark.parametrize("url", [EMBEDDINGS, CHAT + "/", "", "http://x" + CHAT])
def test_the_url_is_the_batchs_endpoint(url):
    """No other spelling of it either."""
    message = "URL provided for this request does not match the batch endpoint"
    assert fault(request(url=url)) == ("invalid_url", message, "url")


def test_streaming_is_refused_and_its_absence_in_any_spelling_is_not():
    """Truthy is asked for; false and null are not."""
    shape = request()
    shape["body"]["stream"] = True
    message = "Streaming is not supported in batch processing"
    assert fault(shape) == ("streaming_unsupported", message, "body.stream")
    for value in (False, None):
        shape["body"]["stream"] = value
        assert inspect(orjson.dumps(shape))[1] == []


@pytest.mark.parametrize("name", ["nonexistent-model", "", "/", "m:cloud:local"])
def test_a_model_that_is_not_there_is_named(name):
    """Unknown, unusable and not allowed are one answer."""
    shape = request(body={"model": name} | CONTENT[CHAT])
    message = f"Model '{name}' does not exist or is not supported by the Batch API."
    assert fault(shape) == ("model_not_found", message, "body.model")


def test_the_echo_of_a_model_is_short_and_can_be_stored():
    """No NUL, which PostgreSQL refuses, no line break, at most a hundred characters."""
    shape = request(body={"model": "a\0b\n" + "x" * 5000} | CONTENT[CHAT])
    shown = "a\ufffdb\ufffd" + "x" * 96
    assert fault(shape)[1] == (
        f"Model '{shown}' does not exist or is not supported by the Batch API."
    )
    assert cannot_find("file-\0" + "x" * 500).message == f"Cannot find file file-\ufffd{'x' * 94}."


@pytest.mark.parametrize(
    ("custom_id", "message"),
    [
        ("", "Custom_id must not be empty"),
        ("x" * 513, "Custom_id must be at most 512 characters long"),
        ("a\0b", "Custom_id must not hold NUL characters"),
    ],
)
def test_custom_ids_have_bounds(custom_id, message):
    """Each bound has its words."""
    assert fault(request(custom_id=custom_id)) == ("invalid_request", message, "custom_id")
    assert inspect(orjson.dumps(request(custom_id="ü" * 512)))[1] == []


@pytest.mark.parametrize(
    "text",
    [
        b"{invalid json",
        b"{} {}",
        b'{"a": NaN}',
        b'{"a": "\xff"}',
        b'{"a": "\xed\xa0\x80"}',
        rb'{"a": "\ud800"}',
        b"[" * 3000,
        b"\xff\xfe{\x00}\x00",
    ],
)
def test_a_line_that_is_not_json_is_said_so(text):
    """Bad syntax, bad UTF-8, lone surrogates and endless nesting alike."""
    good = orjson.dumps(request())
    lines, errors = inspect(good + b"\n" + text)
    message = "This line is not parseable as valid JSON."
    assert errors == [LineError("invalid_json_line", message, None, 2)]
    assert [line.number for line in lines] == [1]


@pytest.mark.parametrize("value", [["not", "a", "request", "object"], "text", 5, None, True])
def test_a_line_that_is_no_object_is_said_so(value):
    """Any other JSON value."""
    assert fault(value) == ("invalid_request", "Each line must be a JSON dictionary object", None)


def test_a_line_that_is_too_long_names_the_limit():
    """The message says how long a line may be."""
    shape = request(body={"model": "m", "messages": ["x" * MOST]})
    expected = "This line is longer than the limit of 10,000 bytes."
    assert fault(shape) == ("invalid_request", expected, None)


def test_one_line_may_have_several_faults_in_the_order_of_its_fields():
    """The required fields, the url, the stream, the body's fields, the model."""
    shape = {"method": 1, "url": "/v1/x", "body": {"model": "other", "stream": True}}
    _, errors = inspect(orjson.dumps(shape))
    assert [(error.code, error.param, error.line) for error in errors] == [
        ("missing_required_parameter", "custom_id", 1),
        ("invalid_request", "method", 1),
        ("invalid_url", "url", 1),
        ("streaming_unsupported", "body.stream", 1),
        ("invalid_request", "body.messages", 1),
        ("model_not_found", "body.model", 1),
    ]


TWINS = [
    ("custom_id", "Custom_ID"),
    ("custom_id", "cu\u017ftom_id"),
    ("method", "METHOD"),
    ("url", "Url"),
    ("body", "BODY"),
]


@pytest.mark.parametrize("beside", [True, False])
@pytest.mark.parametrize(("name", "twin"), TWINS)
def test_a_field_is_spelled_in_its_letter_case(name, twin, beside):
    """Beside the right one or in its place, it is the one fault of that field, in its line."""
    shape = request()
    shape[twin] = shape[name] if beside else shape.pop(name)
    message = f"'{name}' must be spelled in its exact letter case"
    lines, errors = inspect(b"\n" + orjson.dumps(shape))
    assert (lines, errors) == ([], [LineError("invalid_request", message, name, 2)])


def test_fields_of_other_names_are_left_alone():
    """What nobody knows has no twin, and the fields of a body are the endpoint's matter."""
    shape = request(x=1, X=2, custom_id_=3)
    shape["body"] |= {"Custom_ID": 1, "URL": 2}
    assert inspect(orjson.dumps(shape))[1] == []


def repeated(name: str, spelled: str, first: Any = None) -> bytes:
    """Return a request with one more field before the others."""
    text = orjson.dumps(request())
    return b'{"' + spelled.encode() + b'" :' + orjson.dumps(first) + b"," + text[1:]


@pytest.mark.parametrize(
    ("name", "spelled"),
    [
        ("custom_id", "custom_id"),
        ("method", "method"),
        ("url", "url"),
        ("body", "body"),
        ("url", r"\u0075rl"),
        ("url", r"u\u0072\u006C"),
        ("custom_id", r"custom\u005Fid"),
        ("custom_id", r"custom\u005fi\u0064"),
    ],
)
def test_a_field_stands_once(name, spelled):
    """The last would win here, the first elsewhere; an escaped letter is a letter."""
    content = b"{}\n" + repeated(name, spelled, {"url": 1})
    _, errors = inspect(content)
    message = f"'{name}' appears twice"
    assert errors[4:] == [LineError("invalid_request", message, name, 2)]


@pytest.mark.parametrize(
    "value",
    [
        "url",
        'say "url',
        '"url"',
        "\\",
        '\\"url":',
        r"\u0075rl",
        "é \u0000 \x7f",
        {"url": {"url": ["url", {"url": 1}]}, "method": "body"},
        [{"url": 1}] * 30,
    ],
)
@pytest.mark.parametrize("ascii_only", [True, False])
@pytest.mark.parametrize("at", ["extra", "metadata"])
def test_a_fields_name_elsewhere_is_no_second_one(value, ascii_only, at):
    """In strings, in the body and in what nobody knows, it may stand as often as it likes."""
    shape = request()
    (shape if at == "extra" else shape["body"])[at] = value
    text = json.dumps(shape, ensure_ascii=ascii_only).encode()
    assert inspect(text)[1] == []
    assert inspect(text.replace(b"url", rb"\u0075rl"))[1] == []
    twice = text[:-1] + b', "url" : "' + CHAT.encode() + b'"}'
    for each in (twice, twice.replace(b"url", rb"ur\u006c")):
        assert [error.message for error in inspect(each)[1]] == ["'url' appears twice"]


def test_a_field_that_stands_twice_is_found_whatever_its_value():
    """As many quotes as usual do not hide it."""
    text = b'{"custom_id":1,"custom_id":2,"method":"POST","url":"%b","body":{}}' % CHAT.encode()
    _, errors = inspect(text)
    assert errors[0].message == "'custom_id' appears twice"


_JSON = st.recursive(
    st.none() | st.sampled_from(["url", '"url"', "\\", "\\u0075rl", 'a\\"url', 1.5]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["url", "a", 'b"url', "u\\"]), inner, max_size=3)
    ),
    max_leaves=8,
)
_NAMES = st.sampled_from(["custom_id", "method", "url", "body", "other", 'o"url"', "\\"])


@given(st.lists(st.tuples(_NAMES, _JSON), max_size=6), st.randoms())
def test_fields_that_stand_twice_are_those_that_the_standard_library_sees_twice(pairs, random):
    """No nesting, quoting or escaping makes a difference."""

    def written(text: str) -> str:
        quoted = json.dumps(text)
        for letter in "urlbody_":
            if random.random() < 0.1:
                quoted = re.sub(rf"(?<!\\){letter}", rf"\\u{ord(letter):04x}", quoted)
        return quoted

    text = "{" + ",".join(f"{written(name)}: {json.dumps(value)}" for name, value in pairs) + "}"
    _, errors = inspect(text.encode())
    found = [error.param for error in errors if error.message.endswith("twice")]
    names = [name for name, _ in json.loads(text, object_pairs_hook=list)]
    known = ["custom_id", "method", "url", "body"]
    assert found == [name for name in known if names.count(name) > 1]


def test_an_empty_body_lacks_its_fields():
    """An object without anything is not mistaken for no body."""
    _, errors = inspect(orjson.dumps(request(body={})))
    assert [error.param for error in errors] == ["body.model", "body.messages"]


# ---- the file


def lines_of(*shapes: Any) -> bytes:
    """Write a file."""
    return b"\n".join(map(orjson.dumps, shapes))


def test_a_custom_id_is_unique_in_the_file():
    """The second use is the fault, also of an id that a faulty line has, or that is escaped."""
    faulty = request(custom_id="c-2", method="GET")
    escaped = lines_of(request()).replace(b"c-1", rb"\u0063-1")
    content = lines_of(request(), faulty, request(custom_id="c-2")) + b"\n\n" + escaped
    lines, errors = inspect(content)
    assert [line.number for line in lines] == [1]
    assert [(error.code, error.param, error.line) for error in errors] == [
        ("invalid_request", "method", 2),
        ("duplicate_custom_id", "custom_id", 3),
        ("duplicate_custom_id", "custom_id", 5),
    ]
    assert "is a duplicate of another request" in errors[1].message
    assert "must be unique" in errors[1].message


def test_a_file_may_ask_for_several_models():
    """They are known by their canonical names, in the order of their first lines."""
    inspection = Inspection(Rules(CHAT, find, MOST))
    for number, name in enumerate(["n", "m", "m:latest", "n"]):
        shape = request(custom_id=str(number), body={"model": name} | CONTENT[CHAT])
        (raw,) = split(orjson.dumps(shape))
        assert inspection.check(raw)
    assert (list(inspection.models), inspection.total) == (["n:latest", "m:latest"], 4)


@pytest.mark.parametrize("content", [b"", b"\n\r\n  \n"])
def test_a_file_without_requests_is_empty(content):
    """An empty file is a fault of the whole."""
    _, errors = inspect(content)
    assert [(error.code, error.param, error.line) for error in errors] == [
        ("empty_file", None, None)
    ]


def test_too_many_requests_are_refused_and_reading_ends():
    """50,000 pass; one more is a fault of the whole, and nothing behind it matters."""
    inspection = Inspection(Rules(CHAT, find, MOST))
    template = orjson.dumps(request(custom_id="c-%d"))
    for number in range(MOST_LINES):
        text = template % number
        assert inspection.check(RawLine(number + 1, 0, len(text), text)) is not None
    assert (inspection.over, inspection.verdict()) == (False, [])
    assert inspection.check(RawLine(MOST_LINES + 1, 0, 2, b"{}")) is None
    (error,) = inspection.verdict()
    assert inspection.over
    assert (error.code, error.param, error.line) == ("too_many_tasks", None, None)
    assert "50,000" in error.message


def test_errors_are_capped_and_reading_ends_with_the_last():
    """A hundred faults are enough to see what is wrong."""
    inspection = Inspection(Rules(CHAT, find, MOST))
    for number in range(1, MOST_ERRORS // 2 + 1):
        assert not inspection.over
        shape = request(custom_id=str(number), body={})
        text = orjson.dumps(shape)
        inspection.check(RawLine(number, 0, len(text), text))
    assert (inspection.over, len(inspection.verdict())) == (True, MOST_ERRORS)


def test_the_last_line_before_the_cap_does_not_pass_it():
    """A line with several faults is cut at the cap."""
    inspection = Inspection(Rules(CHAT, find, MOST))
    for number in range(1, MOST_ERRORS):
        inspection.check(RawLine(number, 0, 1, b"x"))
    inspection.check(RawLine(MOST_ERRORS, 0, 2, b"{}"))
    errors = inspection.verdict()
    assert (inspection.over, len(errors)) == (True, MOST_ERRORS)
    assert errors[-1].param == "custom_id"


def test_a_line_of_too_many_pieces_is_refused_before_it_is_read():
    """What a live call may not be made of, a line may not either."""
    crowd = request(body={"model": "m", "messages": [[]] * MAX_MARKS})
    text = orjson.dumps(crowd)
    inspection = Inspection(Rules(CHAT, find, len(text)))
    (raw,) = split(text, most=len(text))
    assert inspection.check(raw) is None
    (found,) = inspection.verdict()
    assert (found.code, found.param, found.line) == ("invalid_request", None, 1)
    assert found.message.startswith(f"This line holds more than {MAX_MARKS} objects")
