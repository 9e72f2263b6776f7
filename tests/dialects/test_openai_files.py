"""Files in OpenAI's shape: forms, queries, names, and what can be JSONL."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trio_gateway.core.batches import StoredFile
from trio_gateway.core.errors import InvalidCall
from trio_gateway.dialects import openai_files
from trio_gateway.dialects.openai_files import FirstLine, Form, Page

NOW = datetime(2026, 1, 2, 3, 4, 5, 678_901, tzinfo=UTC)
FILE = StoredFile("file-1", "ten_a", "batch", "a.jsonl", 7, "files/ten_a/file-1", NOW)
ANCHOR, SECONDS = openai_files.ANCHOR, openai_files.SECONDS


def test_a_file_has_every_field_of_its_object():
    """Those that are deprecated too, for clients wait for the status."""
    assert orjson.loads(openai_files.render(FILE)) == {
        "id": "file-1",
        "object": "file",
        "bytes": 7,
        "created_at": 1767323045,
        "expires_at": None,
        "filename": "a.jsonl",
        "purpose": "batch",
        "status": "processed",
        "status_details": None,
    }


def test_the_expiry_is_so_many_seconds_after_the_creation():
    """To the second, whatever the fraction was."""
    shown = orjson.loads(
        openai_files.render(replace(FILE, expires_at=NOW + timedelta(seconds=4545)))
    )
    assert shown["expires_at"] - shown["created_at"] == 4545


def test_a_list_names_its_ends():
    """First and last id, empty where nothing is listed."""
    page = orjson.loads(openai_files.render_list([FILE, replace(FILE, id="z")], has_more=True))
    assert (page["object"], page["has_more"]) == ("list", True)
    assert [page["first_id"], page["last_id"]] == [each["id"] for each in page["data"]]
    empty = orjson.loads(openai_files.render_list([], has_more=False))
    assert empty == {"object": "list", "data": [], "first_id": "", "last_id": "", "has_more": False}


@pytest.mark.parametrize(
    ("query", "page"),
    [
        (b"", Page()),
        (b"limit=1&order=asc&purpose=batch&after=file-1", Page("batch", 1, "asc", "file-1")),
        (b"limit=10000&purpose=batch_output", Page("batch_output", 10_000)),
        (b"unknown=1&unknown=2", Page()),
    ],
)
def test_a_good_query_is_read(query, page):
    """What is not given has its default; what is not known is ignored."""
    assert openai_files.parse_page(query) == page


@pytest.mark.parametrize(
    ("query", "param"),
    [
        (b"limit=0", "limit"),
        (b"limit=10001", "limit"),
        (b"limit=-1", "limit"),
        (b"limit=1.0", "limit"),
        (b"limit=", "limit"),
        (b"limit=%D9%A1", "limit"),
        (b"limit=1&limit=1", "limit"),
        (b"order=up", "order"),
        (b"order=", "order"),
        (b"purpose=anything", "purpose"),
        (b"purpose=", "purpose"),
        (b"after=a&after=b", "after"),
        (b"\xff", None),
        (b"a&" * 50, None),
    ],
)
def test_a_bad_query_is_refused_by_name(query, param):
    """400 with the field."""
    with pytest.raises(InvalidCall) as caught:
        openai_files.parse_page(query)
    assert caught.value.param == param


@pytest.mark.parametrize(
    ("fields", "form"),
    [
        ({"purpose": "batch"}, Form("batch", 2_592_000)),
        ({"purpose": "evals"}, Form("evals", None)),
        ({ANCHOR: "created_at", SECONDS: "3600"}, Form("batch", 3600)),
        ({ANCHOR: "created_at", SECONDS: "2592000"}, Form("batch", 2_592_000)),
        ({"expires_after": '{"anchor":"created_at","seconds":4545}'}, Form("batch", 4545)),
    ],
)
def test_a_good_form_is_read(fields, form):
    """Two ways to say when a file expires; a batch's input expires anyway."""
    assert openai_files.parse_form({"purpose": "batch"} | fields) == form


@pytest.mark.parametrize("purpose", openai_files.PURPOSES)
def test_every_purpose_of_inputs_is_accepted(purpose):
    """Those of outputs are the gateway's own."""
    assert openai_files.parse_form({"purpose": purpose}).purpose == purpose


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"purpose": None}, "purpose"),
        ({"purpose": ""}, "purpose"),
        ({"purpose": "Batch"}, "purpose"),
        ({"purpose": "batch_output"}, "purpose"),
        ({ANCHOR: "created_at"}, SECONDS),
        ({SECONDS: "3600"}, ANCHOR),
        ({ANCHOR: "now", SECONDS: "3600"}, ANCHOR),
        ({ANCHOR: "created_at", SECONDS: "3599"}, SECONDS),
        ({ANCHOR: "created_at", SECONDS: "2592001"}, SECONDS),
        ({ANCHOR: "created_at", SECONDS: "1e5"}, SECONDS),
        ({ANCHOR: "created_at", SECONDS: " 3600"}, SECONDS),
        ({ANCHOR: "created_at", SECONDS: "٣٦٠٠"}, SECONDS),
        ({"expires_after": ""}, "expires_after"),
        ({"expires_after": "3600"}, "expires_after"),
        ({"expires_after": "{}"}, "expires_after"),
        ({"expires_after": '{"anchor":"created_at"}'}, "expires_after"),
        ({"expires_after": '{"anchor":"created_at","seconds":"3600"}'}, "expires_after"),
        ({"expires_after": '{"anchor":"created_at","seconds":3600.0}'}, "expires_after"),
        ({"expires_after": '{"anchor":"created_at","seconds":true}'}, "expires_after"),
        (
            {"expires_after": '{"seconds":3600,"anchor":"created_at","seconds":3601}'},
            "expires_after",
        ),
        ({"expires_after": "{}", SECONDS: "3600"}, "expires_after"),
    ],
)
def test_a_bad_form_is_refused_by_name(fields, param):
    """400 with the field, and never with its value."""
    given = {name: v for name, v in ({"purpose": "batch"} | fields).items() if v is not None}
    with pytest.raises(InvalidCall) as caught:
        openai_files.parse_form(given)
    assert caught.value.param == param


@pytest.mark.parametrize(
    ("name", "clean"),
    [
        (None, "uploaded_file"),
        ("", "uploaded_file"),
        ("a.jsonl", "a.jsonl"),
        ("/etc/passwd", "passwd"),
        ("..\\..\\a.txt", "a.txt"),
        ("a/..", "uploaded_file"),
        (".", "uploaded_file"),
        ("a/", "uploaded_file"),
        ("a\x00b\r\nc\u2028d\u202ee", "abcde"),
        ("  a b  ", "a b"),
        ("größe.jsonl", "größe.jsonl"),
        ("é" * 200 + ".jsonl", "é" * 124 + ".jsonl"),
        ("a" * 300, "a" * 255),
    ],
)
def test_a_name_loses_its_folders_and_what_cannot_be_shown(name, clean):
    """It keeps its ending however long it is."""
    assert openai_files.clean_name(name) == clean


@given(st.text(max_size=600))
def test_every_name_can_stand_in_a_header(name):
    """No control character, no more than 255 bytes, never empty; ASCII in the header."""
    clean = openai_files.clean_name(name)
    assert 0 < len(clean.encode()) <= 255
    assert not set(clean) & set("/\\\r\n\0")
    assert openai_files.clean_name(clean) == clean
    header = openai_files.disposition(clean)
    assert header.isascii()
    assert header.isprintable()
    assert header.startswith('attachment; filename="')
    assert header.count('"') == 2


def test_a_name_that_is_not_plain_is_said_twice():
    """Once for old readers and once whole."""
    assert openai_files.disposition("a b.jsonl") == 'attachment; filename="a b.jsonl"'
    assert openai_files.disposition('ä".jsonl') == (
        "attachment; filename=\"__.jsonl\"; filename*=UTF-8''%C3%A4%22.jsonl"
    )


CONTENTS = [
    (b'{"a":1}', True),
    (b'{"a":1}\n', True),
    (b'{"a":1}\r\nnot json', True),
    (b"[]\n", True),
    (b"\xef\xbb\xbf{}\n", True),
    (b"\xef\xbb\xbf", True),
    (b"\n\r\n \t\n{}\n", True),
    (b"\n\n", True),
    (b"  \n", True),
    ('{"a":"\u2028\u0085"}\n'.encode(), True),
    (b"x", False),
    (b"{\n}", False),
    (b"\nx\n{}", False),
    (b"\xef\xbb\xbf\xef\xbb\xbf{}", False),
    (b"\xff\xfe{}", False),
    (b'{"a":1} {"b":2}\n', False),
    (b'"' + b"a" * (2 << 20) + b'"', True),
    (b"a" * (2 << 20), True),
]


@pytest.mark.parametrize(("content", "fine"), CONTENTS)
@pytest.mark.parametrize("size", [1, 2, 7, 1 << 16])
def test_the_first_line_tells_jsonl_however_it_comes(content, fine, size):
    """Blank lines and one mark before it are passed over; one too long is not looked at."""
    first, step = FirstLine(), max(size, len(content) // 1000)
    for at in range(0, len(content), step):
        first.feed(content[at : at + step])
    if fine:
        first.check()
        return
    with pytest.raises(InvalidCall):
        first.check()


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"", "the file is empty"),
        (b"\xef\xbb\xbf\xef\xbb\xbf{}", "the first line is not valid JSON"),
        (b"\n{\n}", "the first line is not valid JSON"),
        (b"\n", None),
        (b"{}", None),
    ],
)
def test_what_is_wrong_with_a_batchs_input_is_said(content, why):
    """Behind the words that clients look for, which stay as they are."""
    first = FirstLine()
    for at in range(len(content)):
        first.feed(content[at : at + 1])
    if why is None:
        first.check()
        return
    with pytest.raises(InvalidCall) as caught:
        first.check()
    assert caught.value.message == f"Invalid file format for Batch API. Must be .jsonl: {why}."
    assert caught.value.param is None


@pytest.mark.parametrize(("name", "good"), [("a.jsonl", 1), ("A.JSONL", 1), ("a.json", 0), ("", 0)])
def test_a_batchs_input_is_named_jsonl(name, good):
    """Any other ending is refused with the words that clients look for."""
    if good:
        openai_files.check_batch_name(name)
        return
    with pytest.raises(InvalidCall) as caught:
        openai_files.check_batch_name(name)
    assert caught.value.message == (
        "Invalid file format for Batch API. Must be .jsonl: the file's name does not end in .jsonl."
    )
    assert caught.value.param is None
