"""The table of routes and the screen in front of it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trio_gateway.core.errors import EndpointNotAllowed, InvalidCall, MethodNotAllowed
from trio_gateway.dialects import table
from trio_gateway.web.routes import (
    EXACT,
    INFERENCE,
    MODEL_ROUTE,
    NAMED,
    find,
    id_in,
    methods,
    route_of,
    screen,
)

NAME = st.text("abcABC019._-", min_size=1, max_size=20).filter(lambda name: name not in {".", ".."})


def screened(path, method="GET", headers=()):
    """Screen a request."""
    return screen({"method": method, "headers": list(headers)}, path)


def test_every_inference_route_has_a_dialect():
    """The table of routes and the table of dialects name the same routes."""
    assert table.INFERENCE.keys() == INFERENCE
    assert all(EXACT[path] == ("POST",) for path in INFERENCE)


def test_every_route_passes_with_its_own_methods_alone():
    """405 names exactly the methods that pass."""
    named = {route.replace("{id}", "Some-id_1"): allowed for route, allowed in NAMED.items()}
    for path, allowed in (EXACT | named).items():
        assert all(screened(path, method) is None for method in allowed)
        refusal = screened(path, "PATCH")
        assert isinstance(refusal, MethodNotAllowed)
        assert refusal.allow.split(", ") == list(allowed)


@given(st.text(max_size=40))
def test_any_other_path_is_outside(path):
    """Whatever is not in the table, byte for byte, is refused before method and framing."""
    if path not in EXACT and not path.startswith(("/v1/models/", "/v1/files/", "/v1/batches/")):
        bad = [(b"content-length", b"x")]
        assert isinstance(screened(path, "PATCH", bad), EndpointNotAllowed)


@given(st.lists(NAME, min_size=1, max_size=4), st.sampled_from(["/", "%2F", "%2f"]), NAME)
def test_the_path_of_a_model_may_hold_slashes_and_colons(parts, slash, tag):
    """Plain or encoded; no other escape, and no empty or dotted part."""
    name = slash.join(parts)
    for path in (f"/v1/models/{name}", f"/v1/models/{name}:{tag}", f"/v1/models/{name}%3A{tag}"):
        assert methods(path) == ("GET",)
    for part in ("", ".", "..", "%2e", "%2E.", " ", "%20", "a b", "\\", "%5c", "?", "#", "\u00e4"):
        assert methods(f"/v1/models/{name}{slash}{part}") is None
        assert methods(f"/v1/models/{part}{slash}{name}") is None


IDS = [route for route in NAMED if route != MODEL_ROUTE]


@pytest.mark.parametrize("route", IDS)
@given(name=st.from_regex(r"[A-Za-z0-9_-]{1,128}", fullmatch=True))
def test_the_path_of_a_file_or_batch_names_its_route_and_its_id(route, name):
    """Both are found again, whatever id it is."""
    path = route.replace("{id}", name)
    assert (route_of(path), id_in(path)) == (route, name)
    assert methods(path) == NAMED[route]


@pytest.mark.parametrize("route", IDS)
@pytest.mark.parametrize(
    "name", ["", ".", "..", "a/b", "a%2Fb", "%61", "a b", "a.b", "a:b", "a\n", "\u00e4", "a" * 129]
)
def test_what_is_no_id_is_outside_the_table(route, name):
    """No other byte, no escape, not empty, not longer than an id can be."""
    path = route.replace("{id}", name)
    assert find(path) is None
    assert isinstance(screened(path), EndpointNotAllowed)


def test_a_model_in_a_path_has_a_limit():
    """What cannot be a name is not looked at as one."""
    assert methods("/v1/models/" + "a" * 700) == ("GET",)
    assert methods("/v1/models/" + "a" * 701) is None


@pytest.mark.parametrize(
    ("headers", "good"),
    [
        ([(b"content-length", b"5")], True),
        ([(b"transfer-encoding", b"chunked")], True),
        ([(b"transfer-encoding", b"Chunked")], True),
        ([(b"content-length", b"5"), (b"transfer-encoding", b"chunked")], False),
        ([(b"content-length", b"5"), (b"content-length", b"5")], False),
        ([(b"content-length", b"+5")], False),
        ([(b"content-length", b"-5")], False),
        ([(b"content-length", b" 5")], False),
        ([(b"content-length", b"5,5")], False),
        ([(b"content-length", b"")], False),
        ([(b"content-length", "\u0665".encode())], False),
        ([(b"content-length", b"9" * 20)], False),
        ([(b"transfer-encoding", b"gzip, chunked")], False),
        ([(b"transfer-encoding", b"chunked\x0b")], False),
        ([(b"transfer-encoding", b"chunked"), (b"transfer-encoding", b"chunked")], False),
        ([(b"authorization", b"a"), (b"authorization", b"a")], False),
        ([(b"x-api-key", b"a"), (b"x-api-key", b"a")], False),
        ([(b"authorization", b"a"), (b"x-api-key", b"a")], True),
        ([(b"cookie", b"a"), (b"cookie", b"a")], True),
    ],
)
def test_framing_that_could_be_read_in_two_ways_is_refused(headers, good):
    """The text names the header, never what it holds."""
    refusal = screened("/api/chat", "POST", headers)
    assert (refusal is None) is good
    assert good or isinstance(refusal, InvalidCall)
