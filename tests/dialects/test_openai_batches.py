"""/v1/batches: bodies that are refused by name, keys, pages, and the object's shape."""

import re
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import orjson
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from trio_gateway.core.batches import ENDPOINTS, Batch, LineError, Status, Wanted
from trio_gateway.core.errors import InvalidCall
from trio_gateway.dialects import openai_batch_create as create
from trio_gateway.dialects import openai_batches as dialect

patient = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])

LEAST = {
    "input_file_id": "file-1",
    "endpoint": "/v1/chat/completions",
    "completion_window": "24h",
}
MADE_AT = datetime(2026, 1, 2, 3, 4, 5, 999_999, tzinfo=UTC)
BATCH = Batch(
    id="batch_1",
    tenant_id="ten_1",
    key_id="key_1",
    endpoint="/v1/chat/completions",
    input_file_id="file-1",
    completion_window="24h",
    status=Status.VALIDATING,
    created_at=MADE_AT,
    expires_at=MADE_AT + timedelta(days=1),
    idempotency_key="mine",
)
TIMES: list[str] = [
    f"{name}_at"
    for name in (
        "in_progress",
        "finalizing",
        "completed",
        "failed",
        "expired",
        "cancelling",
        "cancelled",
    )
]

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)


def parse(header=None, **changes):
    body = {name: value for name, value in (LEAST | changes).items() if value is not ...}
    return create.parse_create(orjson.dumps(body), header)


def refused(header=None, **changes):
    with pytest.raises(InvalidCall) as caught:
        parse(header, **changes)
    return caught.value


# What is asked for


def test_the_least_body_is_enough():
    """All else is absent, and so null is as good as nothing."""
    expected = Wanted("file-1", "/v1/chat/completions", "24h")
    assert parse() == expected
    nulls = {"metadata": None, "output_expires_after": None, "idempotency_key": None}
    assert parse(**nulls, something_new=1) == expected


def test_everything_that_may_be_said_is_kept():
    """All fields at their outermost values."""
    metadata = {f"{number:064}": "v" * 512 for number in range(16)}
    wanted = parse(
        input_file_id="f" * 128,
        endpoint="/v1/embeddings",
        metadata=metadata,
        output_expires_after={"anchor": "created_at", "seconds": 3600},
        idempotency_key="k" * 255,
    )
    assert wanted == Wanted("f" * 128, "/v1/embeddings", "24h", metadata, 3600, "k" * 255)
    assert parse(metadata={}).metadata == {}
    after = {"anchor": "created_at", "seconds": 2_592_000}
    assert parse(output_expires_after=after).output_expires_after == 2_592_000


@pytest.mark.parametrize("endpoint", ["/v1/invalid/endpoint", "", "/v1/responses", "/api/chat"])
def test_an_endpoint_must_be_one_of_three(endpoint):
    """The message alone says what is wrong, for clients that show nothing else."""
    error = refused(endpoint=endpoint)
    assert (error.status, error.code, error.param) == (400, "invalid_value", "endpoint")
    assert "Invalid endpoint" in error.message
    for words in (
        "invalid value",
        "supported values",
        "invalid_value",
        f"'{endpoint}'",
        "endpoint",
    ):
        assert words in error.message
    assert all(f"'{known}'" in error.message for known in ENDPOINTS)


@pytest.mark.parametrize("window", ["now", "1h", "48h", "invalid", "", "24H", "24h "])
def test_a_completion_window_must_be_24h(window):
    """No other window exists."""
    error = refused(completion_window=window)
    assert (error.status, error.code, error.param) == (400, "invalid_value", "completion_window")
    assert "completion_window" in error.message
    assert f"invalid value '{window}'" in error.message
    assert "'24h'" in error.message


@pytest.mark.parametrize("value", [..., None])
@pytest.mark.parametrize("name", LEAST)
def test_a_required_field_must_be_there(name, value):
    """Absent and null are the same."""
    error = refused(**{name: value})
    assert (error.code, error.param) == ("missing_required_parameter", name)
    assert name in error.message


@pytest.mark.parametrize("value", [1, 1.5, True, [], {}])
@pytest.mark.parametrize("name", [*LEAST, "idempotency_key"])
def test_a_text_must_be_a_string(name, value):
    """Nothing is converted."""
    error = refused(**{name: value})
    assert (error.code, error.param) == ("invalid_type", name)
    assert "should be a valid string" in error.message


@pytest.mark.parametrize("value", ["", "f" * 129, "a\0b", "a\x1b[2J", "a\nb"])
def test_a_file_id_is_short_and_printable(value):
    """It goes into messages and onto terminals, whatever it names."""
    error = refused(input_file_id=value)
    assert (error.code, error.param) == ("invalid_value", "input_file_id")


@pytest.mark.parametrize(
    ("metadata", "code", "param"),
    [
        ({"tags": ["tag1", "tag2"]}, "invalid_type", "metadata.tags"),
        ({"tags": 1}, "invalid_type", "metadata.tags"),
        ({"tags": None}, "invalid_type", "metadata.tags"),
        ({"tags": {"string": "no"}}, "invalid_type", "metadata.tags"),
        ([], "invalid_type", "metadata"),
        ("tags", "invalid_type", "metadata"),
        ({str(n): "" for n in range(17)}, "object_above_max_properties", "metadata"),
        ({"k" * 65: ""}, "property_name_above_max_length", "metadata." + "k" * 65),
        ({"tags": "v" * 513}, "string_above_max_length", "metadata.tags"),
        ({"tags": "a\0b"}, "invalid_value", "metadata.tags"),
        ({"t\0": "a"}, "invalid_value", "metadata.t?"),
    ],
)
def test_metadata_is_a_few_short_strings(metadata, code, param):
    """Each rule has its code, and the pair at fault is named."""
    error = refused(metadata=metadata)
    assert (error.status, error.code, error.param) == (400, code, param)
    assert "metadata" in error.message
    if param == "metadata.tags":
        assert "tags" in error.message
    if code == "invalid_type" and param == "metadata.tags":
        assert "should be a valid string" in error.message


@pytest.mark.parametrize(
    ("value", "code", "param"),
    [
        ("1h", "invalid_type", ""),
        ([], "invalid_type", ""),
        ({}, "missing_required_parameter", ".anchor"),
        ({"anchor": "created_at"}, "missing_required_parameter", ".seconds"),
        ({"anchor": "last_active_at", "seconds": 3600}, "invalid_value", ".anchor"),
        ({"anchor": "created_at", "seconds": 3599}, "invalid_value", ".seconds"),
        ({"anchor": "created_at", "seconds": 2_592_001}, "invalid_value", ".seconds"),
        ({"anchor": "created_at", "seconds": "3600"}, "invalid_type", ".seconds"),
        ({"anchor": "created_at", "seconds": 3600.0}, "invalid_type", ".seconds"),
        ({"anchor": "created_at", "seconds": True}, "invalid_type", ".seconds"),
        ({"Anchor": "created_at", "seconds": 3600}, "invalid_request", ".anchor"),
    ],
)
def test_results_expire_from_an_hour_to_thirty_days_after_their_making(value, code, param):
    """Anything else names the field inside the object."""
    error = refused(output_expires_after=value)
    assert (error.code, error.param) == (code, f"output_expires_after{param}")
    assert error.param in error.message


@pytest.mark.parametrize(
    "body", [b"", b"{", b"[]", b'"x"', b'{"endpoint":"a","endpoint":"b"}', b'{"Endpoint":"a"}']
)
def test_a_body_that_two_readers_could_read_differently_is_refused(body):
    """As on every other route."""
    with pytest.raises(InvalidCall):
        create.parse_create(body)


@patient
@given(value=texts.filter(lambda text: text not in {*ENDPOINTS, "24h"}) | st.just("x" * 500))
def test_a_message_shows_at_most_a_hundred_characters_of_a_value(value):
    """Nor does it hold what could rule a terminal."""
    for error in (refused(endpoint=value), refused(completion_window=value)):
        found = re.search(r"invalid value '(.*)' for", error.message, re.DOTALL)
        assert found
        assert len(found[1]) == min(len(value), 100)
        assert error.message.isprintable()
    named = refused(metadata={value: 1})
    assert len(named.param) <= len("metadata.") + 100
    assert named.message.isprintable()


@patient
@given(
    st.dictionaries(
        st.sampled_from(sorted(create.KNOWN)),
        st.none()
        | st.booleans()
        | st.integers(-(2**63), 2**63)
        | texts
        | st.dictionaries(texts, texts),
    )
)
def test_whatever_comes_in_a_wanted_or_a_refusal_comes_out(changes):
    """And a refusal names a field."""
    try:
        wanted = parse(**changes)
    except InvalidCall as error:
        assert error.param is None or error.param.split(".")[0] in create.KNOWN
    else:
        assert isinstance(wanted, Wanted)


# Keys


@pytest.mark.parametrize("key", ["", "k" * 256, "a\nb", "a\0", "\u2028", "\x7f"])
def test_a_key_is_1_to_255_printable_characters(key):
    """In the body and in the header, with quotes or without."""
    error = refused(idempotency_key=key)
    assert (error.code, error.param) == ("invalid_value", "idempotency_key")
    for value in (key.encode(), b'"' + key.encode() + b'"'):
        with pytest.raises(InvalidCall) as caught:
            create.header_key([(b"idempotency-key", value)])
        assert caught.value.param == "idempotency_key"


@pytest.mark.parametrize(
    ("value", "key"),
    [
        (b"abc", "abc"),
        (b'"abc"', "abc"),
        (b'  "abc"\t', "abc"),
        (b'""x""', '"x"'),
        (b'a"b', 'a"b'),
        (b"a b, c", "a b, c"),
        ("schlüssel".encode(), "schlüssel"),
    ],
)
def test_the_header_may_be_quoted(value, key):
    """The quotes around it are no part of the key."""
    headers = [(b"host", b"x"), (b"idempotency-key", value)]
    assert create.header_key(headers) == key


@pytest.mark.parametrize(
    "value", [b'"', b'"a', b'a"', b' "a b ', b'"""', b'""a"', b'"a""', rb'"a\""']
)
def test_a_quote_of_the_header_has_its_other_half(value):
    """A key that was cut in transit is not taken for another one."""
    with pytest.raises(InvalidCall) as caught:
        create.header_key([(b"idempotency-key", value)])
    assert (caught.value.status, caught.value.param) == (400, "idempotency_key")
    assert "double quote" in caught.value.message


def test_there_is_one_header_or_none():
    """Two are refused, be they equal or not; bytes that are no text as well."""
    assert create.header_key([(b"host", b"x")]) is None
    for values in ([b"a", b"a"], [b"a", b"b"], [b"\xff"]):
        with pytest.raises(InvalidCall) as caught:
            create.header_key([(b"idempotency-key", value) for value in values])
        assert caught.value.param == "idempotency_key"


def test_body_and_header_must_agree():
    """Either will do, both will if they are the same."""
    assert parse("k").idempotency_key == "k"
    assert parse("k", idempotency_key=None).idempotency_key == "k"
    assert parse("k", idempotency_key="k").idempotency_key == "k"
    error = refused("k", idempotency_key="K")
    assert (error.status, error.param) == (400, "idempotency_key")


# Pages


@pytest.mark.parametrize(
    ("query", "limit", "after"),
    [
        (b"", 20, None),
        (b"limit=1", 1, None),
        (b"limit=100&after=batch_1", 100, "batch_1"),
        (b"after=&other=1&other=2", 20, None),
        (b"after=%00", 20, "\0"),
        (b"\xff=\xff", 20, None),
    ],
)
def test_a_page_is_read_from_the_query(query, limit, after):
    """Unknown fields do not matter."""
    assert dialect.parse_page(query) == dialect.Page(limit, after)


@pytest.mark.parametrize(
    "limit", ["", "0", "101", "-1", "1.0", "+5", "%205", "x", "\u0661", "1000"]
)
def test_a_limit_is_1_to_100(limit):
    """Anything else is named."""
    with pytest.raises(InvalidCall) as caught:
        dialect.parse_page(f"limit={limit}".encode())
    assert caught.value.param == "limit"


@pytest.mark.parametrize("query", [b"limit=1&limit=1", b"after=a&after=b", b"a&" * 100])
def test_a_query_says_each_thing_once(query):
    """Two readers could take another one each."""
    with pytest.raises(InvalidCall):
        dialect.parse_page(query)


# The object


def test_a_new_batch_has_every_key():
    """Counts and usage are there from the start; the key is nobody's business."""
    assert orjson.loads(dialect.render(BATCH)) == {
        "id": "batch_1",
        "object": "batch",
        "endpoint": "/v1/chat/completions",
        "model": None,
        "errors": None,
        "input_file_id": "file-1",
        "completion_window": "24h",
        "status": "validating",
        "output_file_id": None,
        "error_file_id": None,
        "created_at": 1767323045,
        "expires_at": 1767323045 + 86_400,
        **dict.fromkeys(TIMES),
        "request_counts": {"total": 0, "completed": 0, "failed": 0},
        "usage": {
            "input_tokens": 0,
            "input_tokens_details": {"cached_tokens": 0},
            "output_tokens": 0,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": 0,
        },
        "metadata": None,
        "paused": None,
    }


def test_a_batch_tells_its_errors_counts_and_pause():
    """What the row knows is shown in OpenAI's words."""
    error = LineError("invalid_json_line", "This line is not parseable as valid JSON.", None, 2)
    times: dict[str, Any] = dict.fromkeys(TIMES, MADE_AT)
    batch = replace(
        BATCH,
        errors=[error],
        models=("llama3.2:latest",),
        total=3,
        completed=2,
        failed=1,
        input_tokens=5,
        output_tokens=7,
        metadata={"a": "b"},
        paused="insufficient_quota",
        **times,
    )
    shown = orjson.loads(dialect.render(batch))
    assert shown["errors"] == {
        "object": "list",
        "data": [
            {
                "code": "invalid_json_line",
                "message": "This line is not parseable as valid JSON.",
                "param": None,
                "line": 2,
            }
        ],
    }
    assert shown["model"] == "llama3.2:latest"
    assert shown["request_counts"] == {"total": 3, "completed": 2, "failed": 1}
    assert shown["usage"]["total_tokens"] == 12
    assert (shown["metadata"], shown["paused"]) == ({"a": "b"}, "insufficient_quota")
    assert {shown[name] for name in TIMES} == {1767323045}


@pytest.mark.parametrize("models", [(), ("a:latest", "b:latest")])
def test_no_model_is_shown_unless_there_is_one(models):
    """A batch of several has no one model."""
    assert orjson.loads(dialect.render(replace(BATCH, models=models)))["model"] is None


def test_a_list_names_its_ends():
    """An empty one has null for both."""
    empty = orjson.loads(dialect.render_list([], has_more=False))
    assert empty == {
        "object": "list",
        "data": [],
        "first_id": None,
        "last_id": None,
        "has_more": False,
    }
    page = orjson.loads(dialect.render_list([BATCH, replace(BATCH, id="b")], has_more=True))
    assert (page["first_id"], page["last_id"], page["has_more"]) == ("batch_1", "b", True)
    assert [each["object"] for each in page["data"]] == ["batch", "batch"]
