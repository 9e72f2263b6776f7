"""Typed getters: what they take, and that they never repeat a value."""

import pytest

from trio_gateway.core.errors import InvalidCall
from trio_gateway.dialects import fields

SECRET = "private words"

WRONG = [
    (fields.text, 5, "must be a string"),
    (fields.text, ["private words"], "must be a string"),
    (fields.boolean, "false", "must be true or false"),
    (fields.boolean, 0, "must be true or false"),
    (fields.integer, True, "must be an integer"),
    (fields.integer, 1.5, "must be an integer"),
    (fields.integer, 1e300, "must be an integer"),
    (fields.integer, SECRET, "must be an integer"),
    (fields.integer, 2**64, "must be an integer from"),
    (fields.number, False, "must be a number"),
    (fields.number, SECRET, "must be a number"),
    (fields.number, float("inf"), "must be a number"),
    (fields.number, float("nan"), "must be a number"),
    (fields.number, 1e7, "must be a number from"),
    (fields.array, {}, "must be an array"),
    (fields.array, SECRET, "must be an array"),
    (fields.texts, [SECRET, 1], "must be an array of strings"),
    (fields.objects, [{}, SECRET], "must be an array of objects"),
    (fields.mapping, [SECRET], "must be an object"),
]


@pytest.mark.parametrize(("getter", "value", "rule"), WRONG)
def test_a_wrong_value_names_the_field_and_the_rule(getter, value, rule):
    """`param` is the path, the text holds the rule and no value."""
    with pytest.raises(InvalidCall) as caught:
        getter({"x": value}, "x", "options")
    assert caught.value.param == "options.x"
    assert caught.value.message.startswith(f"'options.x' {rule}")
    assert SECRET not in caught.value.message


@pytest.mark.parametrize(
    ("getter", "value"),
    [
        (fields.text, ""),
        (fields.boolean, False),
        (fields.integer, 0),
        (fields.number, 0.5),
        (fields.number, 2),
        (fields.array, [1]),
        (fields.texts, ["a"]),
        (fields.objects, [{}]),
        (fields.mapping, {"a": 1}),
    ],
)
def test_a_right_value_comes_back_and_null_is_absent(getter, value):
    """Absent and null are None; a value of the type is itself."""
    assert getter({"x": value}, "x") == value
    assert getter({"x": None}, "x") is None
    assert getter({}, "x") is None


def test_a_whole_float_is_an_integer():
    """5.0 is five."""
    value = fields.integer({"x": 5.0}, "x")
    assert value == 5
    assert type(value) is int


def test_bounds_are_part_of_the_rule():
    """Lengths, counts and ranges are named in the refusal."""
    with pytest.raises(InvalidCall, match="at most 3 characters"):
        fields.text({"x": "abcd"}, "x", most=3)
    with pytest.raises(InvalidCall, match="at most 1 items"):
        fields.array({"x": [1, 2]}, "x", most=1)
    with pytest.raises(InvalidCall, match="from 0 to 20"):
        fields.integer({"x": 21}, "x", low=0, high=20)
    with pytest.raises(InvalidCall, match="one of a, b"):
        fields.choice({"x": SECRET}, "x", ("a", "b"))
    assert fields.choice({"x": "b"}, "x", ("a", "b")) == "b"


def test_required_refuses_none():
    """A missing field is named."""
    assert fields.required("", "x") == ""
    with pytest.raises(InvalidCall, match="is required"):
        fields.required(None, "x", "messages")


def test_paths_read_as_in_the_body():
    """Indexes stand in brackets, names behind dots."""
    assert fields.path("content", fields.path(0, "messages")) == "messages[0].content"


def test_size_is_in_utf8_bytes():
    """A character may be four bytes."""
    assert [fields.size(item) for item in ("", "abc", "é", "😀")] == [0, 3, 2, 4]
