"""Lines of output and error files: one JSON object each, whatever is in it."""

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trio_gateway.core.errors import BudgetExhausted, InvalidCall, ModelNotFound, Unauthenticated
from trio_gateway.dialects.batch_output import (
    CANCELLED,
    EXPIRED,
    FAILED,
    LOST,
    failure_line,
    result_line,
    unrun_line,
)
from trio_gateway.dialects.openai_errors import encode_error

TEXTS = st.text(st.characters(exclude_categories=["Cs"]))


def test_an_answer_is_kept_as_an_object_beside_its_custom_id():
    """The shape of an output line: response with status, request id and body; no error."""
    body = b'{"id":"chatcmpl-1","choices":[{"index":0}]}'
    assert orjson.loads(result_line("c-1", "req_00ff", body)) == {
        "id": "batch_req_00ff",
        "custom_id": "c-1",
        "response": {"status_code": 200, "request_id": "req_00ff", "body": orjson.loads(body)},
        "error": None,
    }


def test_an_answers_body_is_embedded_byte_for_byte():
    """Numbers are not read and written again on the way."""
    body = b'{"x":1.10,"big":123456789012345678901234567890}'
    assert body in result_line("c", "req_1", body)


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (InvalidCall("'messages' is required.", param="messages"), 400),
        (Unauthenticated(), 401),
        (ModelNotFound(), 403),
        (BudgetExhausted(), 429),
    ],
)
def test_a_refused_request_has_a_response_and_an_error(error, status):
    """Readers of either field find out: the HTTP answer whole, and code and message above it."""
    line = orjson.loads(failure_line("c-1", "req_00ff", error))
    assert line == {
        "id": "batch_req_00ff",
        "custom_id": "c-1",
        "response": {
            "status_code": status,
            "request_id": "req_00ff",
            "body": orjson.loads(encode_error(error)),
        },
        "error": {"code": error.code, "message": error.message},
    }


@pytest.mark.parametrize(
    ("reason", "code"),
    [
        (EXPIRED, "batch_expired"),
        (CANCELLED, "batch_cancelled"),
        (FAILED, "batch_failed"),
        (LOST, "batch_failed"),
    ],
)
def test_a_request_that_was_not_run_has_an_error_alone(reason, code):
    """No response; the code says why; the id is the same each time it is written."""
    line = unrun_line("c-1", "batch_ab12-7", reason)
    assert orjson.loads(line) == {
        "id": "batch_req_ab12-7",
        "custom_id": "c-1",
        "response": None,
        "error": {"code": code, "message": reason.message},
    }
    assert unrun_line("c-1", "batch_ab12-7", reason) == line


def test_the_words_of_an_expired_line_are_those_that_clients_know():
    """Clients compare this message."""
    assert EXPIRED.message == (
        "This request could not be executed before the completion window expired."
    )


@given(TEXTS, TEXTS, st.booleans())
def test_no_line_holds_a_line_break(custom_id, content, pretty):
    """A file of lines can be split at line feeds, whatever the ids and answers hold."""
    body = orjson.dumps({"content": content}, option=orjson.OPT_INDENT_2 if pretty else 0)
    error = InvalidCall(content or "x")
    for line in (
        result_line(custom_id, "req_1", body),
        failure_line(custom_id, "req_1", error),
        unrun_line(custom_id, "batch_1-1", EXPIRED),
    ):
        assert b"\n" not in line
        assert b"\r" not in line
        assert orjson.loads(line)["custom_id"] == custom_id
    assert orjson.loads(result_line("c", "req_1", body))["response"]["body"] == {"content": content}
