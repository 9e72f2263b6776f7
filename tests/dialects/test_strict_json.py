"""Bodies that two JSON readers could read differently are refused."""

import contextlib
import json

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trio_gateway.core.errors import InvalidCall
from trio_gateway.dialects.strict_json import (
    MAX_DEPTH,
    MAX_MARKS,
    MAX_VALUES,
    parse_object,
    refuse_twins,
)

KNOWN = frozenset({"model", "stream", "messages", "options", "keep_alive"})

NOT_JSON = [
    b" ",
    b"nonsense",
    b'{"model":"a"}{"model":"b"}',
    b'{"model":"a"}\x00',
    b'{"model":"a"},',
    b'{"model":"a",}',
    b"{'model':'a'}",
    b'{"model":NaN}',
    b'{"model":Infinity}',
    b'{"model":-Infinity}',
    b'{"model":1e400}',
    b'{"model":-1e400}',
    b'{"model":' + b"9" * 5000 + b"}",
    b'{"model":01}',
    b'{"model":+1}',
    b'{"model":.5}',
    b'{"model":"\\ud800"}',
    b'{"model":"\\udc00\\ud800"}',
    b'{"\\ud800":1}',
    b'{"model":"\xff"}',
    b'{"model":"\xed\xa0\x80"}',
    b'{"model":"\xc0\xaf"}',
    b'{"model":"a\nb"}',
    b'{"model":"a\x00b"}',
    b'{"model":"\\x41"}',
    b'\xef\xbb\xbf{"model":"a"}',
    '{"model":"a"}'.encode("utf-16"),
    '{"model":"a"}'.encode("utf-16-le"),
    '{"model":"a"}'.encode("utf-32-be"),
    b'/* x */{"model":"a"}',
    b'{"x":' * 100_000,
    b"[" * 1_000_000,
]

REPEATS = [
    (b'{"model":"a","model":"b"}', "model"),
    (b'{"model":"a","model":"a"}', "model"),
    (b'{"mo\\u0064el":"a","model":"b"}', "model"),
    (b'{"model" : "a" , "x":1,\n"model"\t: "b"}', "model"),
    (b'{"options":{"seed":1,"seed":2}}', "options"),
    (b'{"messages":[{"role":"user","role":"system"}]}', "messages"),
    (b'{"messages":[1,[{"a":{"b":1,"b":2}}]]}', "messages"),
    (b'{"private words":1,"private words":2}', None),
    (b'{"x":{"model":1,"model":2}}', None),
    (b'{"":1,"":2}', None),
]

TWINS = [
    ('{"Model":"a"}', "model"),
    ('{"MODEL":"a","model":"b"}', "model"),
    ('{"model":"a","mOdel":"b"}', "model"),
    ('{"\u212aeep_alive":0}', "keep_alive"),
    ('{"keep_alive":5,"KEEP_ALIVE":0}', "keep_alive"),
    ('{"\u017ftream":false}', "stream"),
    ('{"option\u017f":{}}', "options"),
    ('{"me\\u017fsages":[]}', "messages"),
    ('{"M\\u004fdel":"a"}', "model"),
]


@pytest.mark.parametrize("body", NOT_JSON)
def test_what_is_not_strict_json_is_refused(body):
    """No BOM, no other encoding, no NaN, no lone surrogate, nothing behind the value."""
    with pytest.raises(InvalidCall) as caught:
        parse_object(body, KNOWN)
    assert caught.value.param is None
    assert caught.value.status == 400


@pytest.mark.parametrize("body", [b"[]", b'["model"]', b'"model"', b"1", b"null", b"true"])
def test_the_top_must_be_an_object(body):
    """An array or a scalar is refused."""
    with pytest.raises(InvalidCall, match="object"):
        parse_object(body, KNOWN)


def test_an_empty_body_is_refused():
    """Nothing is not JSON."""
    with pytest.raises(InvalidCall, match="empty"):
        parse_object(b"", KNOWN)


@pytest.mark.parametrize(("body", "param"), REPEATS)
def test_a_repeated_key_is_refused_at_every_depth(body, param):
    """`param` is the known field that holds it, and the text never an unknown key."""
    with pytest.raises(InvalidCall, match="duplicate") as caught:
        parse_object(body, KNOWN)
    assert caught.value.param == param
    assert "private" not in caught.value.message


@pytest.mark.parametrize(("body", "param"), TWINS)
def test_a_key_that_differs_in_case_from_a_known_one_is_refused(body, param):
    """Go would take it for the known one, by Unicode's folding too."""
    with pytest.raises(InvalidCall, match="exact letter case") as caught:
        parse_object(body.encode(), KNOWN)
    assert caught.value.param == param


def test_twins_in_an_inner_object_are_named_by_their_path():
    """refuse_twins prefixes the path of the object."""
    refuse_twins({"model": 1, "other": 2}, KNOWN, "x[0]")
    with pytest.raises(InvalidCall) as caught:
        refuse_twins({"MODEL": 1}, KNOWN, "x[0]")
    assert caught.value.param == "x[0].model"


@pytest.mark.parametrize(("opening", "closing"), [(b'{"a":', b"}"), (b"[", b"]")])
def test_nesting_is_bounded(opening, closing):
    """64 levels pass, one more is refused, and a thousand raise nothing else."""
    for depth, passes in ((MAX_DEPTH - 1, True), (MAX_DEPTH, False), (1000, False)):
        body = b'{"x":' + opening * depth + b"1" + closing * depth + b"}"
        if passes:
            assert "x" in parse_object(body, KNOWN)
        else:
            with pytest.raises(InvalidCall):
                parse_object(body, KNOWN)


def test_many_brackets_side_by_side_are_not_nesting():
    """Breadth is no depth, and brackets in a text are no brackets."""
    body = orjson.dumps({"x": [[] for _ in range(500)], "model": "{[" * 500})
    assert len(parse_object(body, KNOWN)["x"]) == 500


def crowd(item: bytes, count: int) -> bytes:
    """Return a body with a list of so many items; it has two fields, an object and an array."""
    return b'{"model":"m","x":[' + b",".join([item] * count) + b"]}"


@pytest.mark.parametrize(
    ("item", "most"),
    [
        (b"[]", MAX_MARKS - 4),
        (b"{}", MAX_MARKS - 4),
        (b'{"a":1}', (MAX_MARKS - 4) // 2),
        (b"1", MAX_VALUES - 4),
        (b'"\\\\\\"[{:,"', MAX_VALUES - 4),
    ],
)
def test_a_body_of_too_many_pieces_is_refused(item, most):
    """However short they are; what stands in a string is none."""
    assert len(parse_object(crowd(item, most), KNOWN)["x"]) == most
    with pytest.raises(InvalidCall, match="more than 131072 objects, arrays and fields") as caught:
        parse_object(crowd(item, most + 2), KNOWN)
    assert (caught.value.status, caught.value.param) == (400, None)


def test_texts_may_hold_what_they_like():
    """No text is too long, or too full of brackets, commas and escapes."""
    text = '[{"a\\": [1, 2]}, ' * 200_000
    assert parse_object(orjson.dumps({"x": [text, "", text]}), KNOWN) == {"x": [text, "", text]}


@pytest.mark.parametrize("item", [b'""', b'"a" ', b'"\\"', b"[", b'{"a":', b"\\"])
def test_what_is_long_and_not_json_is_refused_too(item):
    """It ends as any other body that is not JSON, be it counted or not."""
    with pytest.raises(InvalidCall) as caught:
        parse_object(b'{"x":' + item * MAX_VALUES, KNOWN)
    assert (caught.value.status, caught.value.param) == (400, None)


def test_known_and_unknown_fields_pass_as_they_are():
    """Unknown fields are the business of whoever calls; white space is nobody's."""
    assert parse_object(b' \n{"model" : "a"}\r\n\t ', KNOWN) == {"model": "a"}
    body = '{"model":"\\u00e9 \\ud83d\\ude00 é","extra":{"Model":1},"n":[1,2.5,null,true]}'
    assert parse_object(body.encode(), KNOWN) == json.loads(body)


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=6), inner),
    max_leaves=20,
)


@given(st.dictionaries(st.text(max_size=6), JSON_VALUES, max_size=5))
def test_every_plain_object_is_read_back(value):
    """What a JSON writer writes is what is read."""
    assert parse_object(json.dumps(value).encode(), frozenset()) == value
    assert parse_object(orjson.dumps(value), frozenset()) == value


@given(st.binary(max_size=64))
def test_no_bytes_raise_anything_but_invalid_call(body):
    """The one way out is InvalidCall."""
    with contextlib.suppress(InvalidCall):
        parse_object(body, KNOWN)
