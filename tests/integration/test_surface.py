"""The closed surface: what is not in the table is refused, by its raw bytes."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import orjson
import pytest
import trio

from tests import raw_http
from trio_gateway.web.routes import EXACT, NAMED

MANAGEMENT = (
    "/api/pull",
    "/api/push",
    "/api/create",
    "/api/copy",
    "/api/delete",
    "/api/blobs/sha256:29fdb92e57cf0827ded04ae6461b5931d01fa595843f55d36f5b275a52087dd2",
    "/api/blobs/",
    "/api/me",
    "/api/status",
    "/api/signout",
    "/api/user/keys/some",
    "/api/experimental/web_search",
    "/api/experimental/web_fetch",
    "/api/experimental/model-recommendations",
    "/v1/responses",
    "/v1/messages",
    "/v1/audio/transcriptions",
    "/v1/images/generations",
    "/metrics",
    "/admin/v1/tenants",
    "/debug/pprof/",
)
METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "PROPFIND")

# Spellings that some layer or other would read as a route.
SPELLINGS = (
    "//api//tags",
    "//api/tags",
    "/api//tags",
    "/api/tags/",
    "/./api/tags",
    "/v1/../api/pull",
    "/v1/../api/tags",
    "/v1/%2e%2e/api/pull",
    "/v1/..%2fapi/tags",
    "/v1/models/../../api/pull",
    "/v1/models/%2e%2e/chat/completions",
    "/v1/models/..",
    "/v1/models/a//b",
    "/v1/models/a%2F%2Fb",
    "/v1/models/",
    "/v1/models/a%00",
    "/v1/models/a%20",
    "/v1/models/a%252Fb",
    "/v1/models/a;b",
    "/v1",
    "/v1/",
    "/api",
    "/api/",
    "/api%2fpull",
    "/api%2ftags",
    "/%61pi/pull",
    "/%61pi/tags",
    "/api/%74ags",
    "/api/%2570ull",
    "/api/tags%00",
    "/api/tags%0a",
    "/api/tags%20",
    "/api/pull/",
    "/api\\pull",
    "/api\\tags",
    "/api/tags#x",
    "/api/pull#x",
    "/api/pull;x",
    "/api/tags;x",
    "/API/pull",
    "/API/tags",
    "/Api/Tags",
    "/v1/Chat/completions",
    "/healthz/",
    "/healthz/../api/pull",
    "http://evil/api/tags",
    "http://evil/api/pull",
    "HTTP://127.0.0.1:11434/api/chat",
    "http:/api/tags",
    "*",
    "api/tags",
    "evil.com:443",
)


def dialect_of(path):
    """Name the shape in which errors on a path are written."""
    return "openai" if path == "/v1" or path.startswith("/v1/") else "native"


def code_in(path, body):
    """Read an error in the dialect of its path; nothing else may be in it."""
    error = orjson.loads(body)
    assert list(error) == ["error"]
    if dialect_of(path) == "native":
        assert isinstance(error["error"], str)
        return None
    assert list(error["error"]) == ["message", "type", "param", "code"]
    return error["error"]["code"]


async def audit(world, query, expected, limit=raw_http.LIMIT):
    """Wait until the audit log says what is expected."""
    rows: list[dict[str, Any]] = []
    with trio.move_on_after(limit):
        while rows != expected:
            rows = await world.rows(query)
    assert rows == expected


def untouched(world):
    """Whether upstream saw nothing but discovery."""
    return (
        not world.sim.management
        and not world.sim.started
        and set(world.sim.requests) <= {"/api/tags"}
    )


async def test_every_management_route_is_refused_alike_with_and_without_a_key(world):
    """One 403 per dialect for every method; upstream is not reached; each is audited once."""
    bodies: dict[str, set[bytes]] = defaultdict(set)
    for path in MANAGEMENT:
        for method in METHODS:
            for key in (False, True):
                headers = world.auth() if key else {}
                answer = await world.client.request(method, path, headers=headers)
                assert answer.status_code == 403, (method, path)
                assert answer.headers["x-request-id"].startswith("req_")
                if method != "HEAD":
                    bodies[dialect_of(path)].add(answer.content)
    assert {name: len(found) for name, found in bodies.items()} == {"openai": 1, "native": 1}
    assert code_in("/v1/", *bodies["openai"]) == "endpoint_not_allowed"
    assert untouched(world)
    pairs = len(MANAGEMENT) * len(METHODS)
    await audit(
        world,
        "SELECT count(*) AS rows, sum(count)::int AS refusals, min(count) AS least,"
        " max(count) AS most, count(DISTINCT (method, path)) AS pairs FROM gateway.audit_log"
        " WHERE code = 'endpoint_not_allowed' AND status_code = 403 AND client = '127.0.0.1'",
        [{"rows": pairs, "refusals": 2 * pairs, "least": 2, "most": 2, "pairs": pairs}],
    )


@pytest.mark.parametrize("method", ["GET", "POST"])
async def test_no_odd_spelling_of_a_path_is_a_route(world, method):
    """Raw bytes are compared: whatever decodes or normalizes to a route is refused."""
    body = b'{"model":"llama3.2","prompt":"x"}'
    wrong = {}
    for path in SPELLINGS:
        answer = await raw_http.ask(world.port, f"{method} {path}", world.auth(), body)
        if answer.status != 403 or code_in(path, answer.body) not in {None, "endpoint_not_allowed"}:
            wrong[path] = answer.status
        assert answer.header("connection") == "close"
    assert wrong == {}
    assert untouched(world)


BAD_TARGETS = (
    b"/api/tags\x00",
    b"/api/t\xc3\xa4gs",
    b"/api/tags\t",
    b"/api/tags x",
)


async def test_bytes_that_no_target_may_hold_end_the_connection(world):
    """They are answered 400 by the HTTP layer and nothing follows on that connection."""
    for path in BAD_TARGETS:
        async with raw_http.connect(world.port) as client:
            await client.send(raw_http.request(b"GET " + path, world.auth()))
            assert (await client.answer()).status == 400
            assert await client.closed() == b""
        assert (await world.get("/api/tags")).status_code == 200


async def test_a_known_path_with_another_method_says_which_ones_it_has(world):
    """405 with Allow on every route for every other method, audited, before any key is asked."""
    wrong = {}
    for route, allowed in (EXACT | NAMED).items():
        path = route.replace("{id}", "some-id")
        for method in {*METHODS, "CONNECT"} - set(allowed):
            answer = await raw_http.ask(world.port, f"{method} {path}")
            code = code_in(path, answer.body) if answer.body else None
            right = answer.status == 405 and answer.header("allow") == ", ".join(allowed)
            if not right or code not in {None, "method_not_allowed"}:
                wrong[method, path] = answer
    assert wrong == {}
    assert untouched(world)


STRANGE = (
    ("CONNECT evil.com:443", 403),
    ("CONNECT /api/chat", 405),
    ("OPTIONS *", 403),
    ("TRACE /", 405),
    ("BREW /api/pull", 403),
    ("get /api/tags", 200),
)


async def test_a_strange_method_breaks_nothing(world):
    """It is answered in our own words, and the worker goes on serving."""
    for line, status in STRANGE:
        answer = await raw_http.ask(world.port, line, world.auth())
        assert answer.status == status
        assert answer.header("x-request-id")
        assert (await world.get("/api/tags")).status_code == 200
        assert untouched(world)


async def test_a_method_cannot_be_overridden(world):
    """Neither a header nor a query parameter makes one method another."""
    override = {
        "X-HTTP-Method-Override": "POST",
        "X-HTTP-Method": "POST",
        "X-Method-Override": "POST",
    }
    body = b'{"model":"llama3.2","prompt":"x"}'
    port, auth = world.port, world.auth()
    got = await raw_http.ask(port, "GET /api/chat?_method=POST", auth | override, body)
    assert (got.status, got.header("allow")) == (405, "POST")
    override = dict.fromkeys(override, "DELETE")
    posted = await raw_http.ask(port, "POST /api/generate?_method=DELETE", auth | override, body)
    assert posted.status == 200
    headers = {"X-Original-URL": "/api/pull", "X-Rewrite-URL": "/api/pull"}
    assert (await raw_http.ask(port, "GET /api/version", auth | headers)).status == 200
    assert world.sim.management == []


async def test_identical_refusals_share_a_row_that_counts_them(world):
    """Within a second there is one row, with how often, when first and when last."""
    for _ in range(7):
        await world.client.delete("/api/delete")
    query = (
        "SELECT method, path, status_code, count, tenant_id, key_id, last_at > at AS later"
        " FROM gateway.audit_log"
    )
    row = {"method": "DELETE", "path": "/api/delete", "status_code": 403, "count": 7}
    found = [row | {"tenant_id": None, "key_id": None, "later": True}]
    await audit(world, query, found, limit=1)


async def test_a_refusal_of_a_proven_key_names_tenant_and_key(world):
    """The audit log says whose call it was once that is proven."""
    await world.post("/api/chat", {"model": "absent", "messages": []})
    query = "SELECT code, status_code, tenant_id, key_id FROM gateway.audit_log"
    row = {"code": "model_not_found", "status_code": 403}
    row |= {"tenant_id": world.tenant["id"], "key_id": world.key["id"]}
    await audit(world, query, [row])


async def test_a_key_in_a_path_is_not_kept(world):
    """A base URL with the key in it, or with a piece of it, however spelled, leaves none of it."""
    key = world.key["key"]
    for spelled in (key, key.replace("s", "%73"), key.upper(), key.removeprefix("sk-tg-")):
        await world.client.get(f"/{spelled}/v1/models")
    await audit(
        world,
        "SELECT DISTINCT path FROM gateway.audit_log ORDER BY path",
        [{"path": "/…-…/v1/models"}, {"path": "/…/v1/models"}],
    )


async def test_the_answer_has_an_id_of_our_own(world):
    """An inbound x-request-id is never adopted; ids are unique on every kind of answer."""
    seen = set()
    for path in ("/", "/healthz", "/api/tags", "/api/pull", "/v1/models", "/v1/nothing"):
        answer = await world.client.get(path, headers={"x-request-id": "mine"})
        seen.add(answer.headers["x-request-id"])
    assert len(seen) == 6
    assert all(found.startswith("req_") for found in seen)
