"""Pages of other origins: refused unless their origin is listed."""

import pytest

from tests.world import open_world
from trio_gateway.web.cors import ALLOWED_HEADERS, Cors

LISTED, OTHER = "https://app.example", "https://evil.example"
PREFLIGHT = {
    "access-control-request-method": "POST",
    "access-control-request-headers": "authorization,content-type,x-stainless-lang",
}


def cors_headers(answer):
    """Return the headers of an answer that speak to browsers."""
    return {name for name in answer.headers if name.startswith("access-control-")}


def preflight(setting, **headers):
    """Ask for the answer to a preflight."""
    pairs = [(name.replace("_", "-").encode(), value) for name, value in headers.items()]
    return Cors(setting).preflight({"method": "OPTIONS", "headers": pairs})


@pytest.mark.parametrize(
    ("setting", "origin", "allowed"),
    [
        ("", LISTED, False),
        (LISTED, LISTED, True),
        (f"x, {LISTED} ,", LISTED, True),
        (LISTED, OTHER, False),
        (LISTED, LISTED + ".evil.example", False),
        (LISTED, LISTED.upper(), False),
        (LISTED, LISTED + "/", False),
        (LISTED, "null", False),
        (LISTED, "", False),
        (LISTED, None, False),
        ("*", OTHER, True),
        ("*", None, False),
    ],
)
def test_an_origin_is_compared_whole(setting, origin, allowed):
    """No prefix, no suffix, no other case; the star is every origin."""
    assert Cors(setting).allows(origin) is allowed
    assert bool(Cors(setting).headers(origin)) is allowed


def test_requested_headers_are_granted_if_they_are_names():
    """Anything else is answered with the usual ones, never repeated."""
    for requested, granted in (
        (b"x-stainless-os, authorization", b"x-stainless-os, authorization"),
        (b"a\r\nset-cookie: x", ALLOWED_HEADERS),
        (b"a b", ALLOWED_HEADERS),
        (b"a," * 100 + b"a", ALLOWED_HEADERS),
        (b"", ALLOWED_HEADERS),
    ):
        answer = dict(
            preflight(
                LISTED,
                origin=LISTED.encode(),
                access_control_request_method=b"POST",
                access_control_request_headers=requested,
            )
        )
        assert answer[b"access-control-allow-headers"] == granted


async def test_without_the_setting_no_page_is_spoken_to(world):
    """A preflight is a plain 405, and no answer carries a header for browsers."""
    asked = await world.client.options("/api/chat", headers={"origin": LISTED} | PREFLIGHT)
    assert asked.status_code == 405
    answer = await world.client.get("/v1/models", headers=world.auth() | {"origin": LISTED})
    assert answer.status_code == 200
    assert not cors_headers(asked) | cors_headers(answer)


async def test_a_listed_origin_may_call_and_another_may_not(database, redis_url):
    """Preflights, answers and refusals carry the listed origin; another one gets nothing."""
    async with open_world(database, redis_url, cors_origins=f"http://x, {LISTED}") as world:
        asked = await world.client.options("/api/chat", headers={"origin": LISTED} | PREFLIGHT)
        assert asked.status_code == 204
        assert asked.headers["access-control-allow-origin"] == LISTED
        assert "x-stainless-lang" in asked.headers["access-control-allow-headers"]
        assert "access-control-allow-credentials" not in asked.headers
        assert asked.headers["vary"] == "origin"
        for headers in (world.auth(), {}):
            answer = await world.client.get("/v1/models", headers=headers | {"origin": LISTED})
            assert answer.headers["access-control-allow-origin"] == LISTED
            assert answer.status_code == (200 if headers else 401)
        refused = await world.client.options("/api/chat", headers={"origin": OTHER} | PREFLIGHT)
        plain = await world.client.get("/v1/models", headers=world.auth() | {"origin": OTHER})
        bare = await world.client.options("/api/chat", headers={"origin": LISTED})
        assert (refused.status_code, plain.status_code, bare.status_code) == (405, 200, 405)
        assert not cors_headers(refused) | cors_headers(plain)


async def test_a_preflight_opens_no_path(database, redis_url):
    """What is outside the table of routes is 403 for every origin and every method."""
    async with open_world(database, redis_url, cors_origins="*") as world:
        for path in ("/api/pull", "//api/chat", "/v1/nothing"):
            asked = await world.client.options(path, headers={"origin": LISTED} | PREFLIGHT)
            assert asked.status_code == 403, path
        assert world.sim.management == []
