"""Headers and bodies that answers share."""

import orjson
import pytest

from trio_gateway.core import errors
from trio_gateway.core.domain import Standing, Window
from trio_gateway.web.replies import error_reply, span, standing_headers


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0ms"),
        (0.012, "12ms"),
        (0.9994, "999ms"),
        (1, "1s"),
        (1.2, "2s"),
        (59.5, "1m0s"),
        (360, "6m0s"),
        (3599.1, "1h0m0s"),
        (7203, "2h0m3s"),
        (2_592_000, "720h0m0s"),
    ],
)
def test_durations_are_written_as_openai_writes_them(seconds, text):
    """Rounded up past a second: a caller that waits so long does not come too early."""
    assert span(seconds) == text


def test_a_limit_that_is_not_set_has_no_header():
    """Only what is limited is told, and what never resets tells no reset."""
    assert standing_headers(Standing()) == {}
    found = standing_headers(Standing(requests=Window(60, 59, 1.5), budget=Window(100, 0, None)))
    assert found == {
        "x-ratelimit-limit-requests": "60",
        "x-ratelimit-remaining-requests": "59",
        "x-ratelimit-reset-requests": "2s",
        "x-budget-limit-tokens": "100",
        "x-budget-remaining-tokens": "0",
    }


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (errors.Unauthenticated(), {"www-authenticate": "Bearer"}),
        (errors.MethodNotAllowed("GET, HEAD"), {"allow": "GET, HEAD"}),
        (errors.StoreUnavailable(), {"retry-after": "1"}),
        (errors.ShuttingDown(), {"retry-after": "1"}),
        (errors.Overloaded(retry_after=2.1), {"retry-after": "3"}),
        (errors.RateLimited(retry_after=0.01), {"retry-after": "1"}),
        (errors.BudgetExhausted(should_retry=False), {"x-should-retry": "false"}),
        (errors.UpstreamError(), {}),
        (errors.GatewayError(), {}),
        (errors.EndpointNotAllowed(), {}),
    ],
)
def test_each_error_has_its_headers_and_no_others(error, expected):
    """Whole seconds, at least one; every 503 says when to come back."""
    _, headers = error_reply("/v1/models", error)
    assert headers == {"content-type": "application/json; charset=utf-8"} | expected


def test_a_refusal_by_a_limit_tells_what_is_left():
    """The standing goes out with the 429."""
    standing = Standing(tokens=Window(10, 3, 0.5))
    _, headers = error_reply("/api/chat", errors.RateLimited(standing=standing, retry_after=1))
    assert headers["x-ratelimit-remaining-tokens"] == "3"
    assert headers["x-ratelimit-reset-tokens"] == "500ms"


@pytest.mark.parametrize(
    ("path", "openai"),
    [
        ("/v1", True),
        ("/v1/", True),
        ("/v1/anything", True),
        ("/v1x", False),
        ("/V1/models", False),
        ("//v1/models", False),
        ("/api/chat", False),
        ("*", False),
        ("", False),
    ],
)
def test_an_error_speaks_the_dialect_of_its_path(path, openai):
    """OpenAI's object under /v1, Ollama's text everywhere else; the path is never repeated."""
    body, _ = error_reply(path, errors.InvalidCall("No.", param="model"))
    error = orjson.loads(body)["error"]
    if openai:
        shape = {"message": "No.", "type": "invalid_request_error"}
        assert error == shape | {"param": "model", "code": "invalid_request"}
    else:
        assert error == "No."
