"""Every route meets every control, by the table of routes itself."""

from __future__ import annotations

import orjson
import pytest
import trio

from tests import raw_http
from tests.integration.matrix import EMBEDDER, EXPECTED, KINDS, MODEL, TABLE, cases, wrong
from tests.stores import TestStores, fresh_redis
from tests.world import open_world
from trio_gateway.core.keys import new_key
from trio_gateway.embedded import stores as embedded
from trio_gateway.migrate import upgrade

LIMIT = 4096  # bytes of a body


def test_every_route_is_declared():
    """A route that nobody declared a kind for would meet no control."""
    assert KINDS.keys() == {f"{method} {path}" for path in TABLE for method in TABLE[path]}
    assert {kind for row in EXPECTED.values() for kind in row} == set(KINDS.values())


async def check(world, control, key=None, change=None):
    """Send every case and compare; a refusal must reach neither upstream nor the ledger."""
    differences = {}
    for case in cases(key or world.key["key"], change):
        expected = EXPECTED[control][case.kind]
        started = world.sim.started
        line = f"{case.method} {case.target}"
        answer = await raw_http.ask(world.port, line, case.headers, case.body)
        difference = wrong(case, answer, expected)
        dispatched = world.sim.started - started
        if difference is None and dispatched != (expected == 200 and case.kind == "inference"):
            difference = f"{dispatched} calls went upstream"
        if difference is not None:
            differences[line] = difference
    assert differences == {}
    assert world.sim.management == []


def presenting(key):
    """Replace the key."""

    def change(case):
        case.headers = [pair for pair in case.headers if pair[0] != "Authorization"]
        if key is not None:
            case.headers.append(("Authorization", f"Bearer {key}"))

    return change


def with_header(name, value):
    """Add a header."""
    return lambda case: case.headers.append((name, value))


def with_body(body):
    """Replace the bodies of what has one."""

    def change(case):
        if case.method == "POST":
            case.body = body

    return change


def naming(model):
    """Ask for another model."""

    def change(case):
        case.model = model

    return change


def other_method(case):
    """Use a method that the route does not have."""
    case.method = next(m for m in ("POST", "GET", "DELETE") if m not in TABLE[case.path])
    case.body = None


def two_lengths(case):
    """Announce the body's length in two ways."""
    case.headers += [("Transfer-Encoding", "chunked"), ("Content-Length", "5")]
    case.body = b"0\r\n\r\n"


CHANGES = {
    "nothing wrong": None,
    "no key": presenting(None),
    "malformed key": presenting("sk-tg-what"),
    "two keys": with_header("Authorization", "Bearer x"),
    "wrong method": other_method,
    "forbidden model": naming("llama3.2"),
    "unknown model": naming("absent:1b"),
    "content encoding": with_header("Content-Encoding", "gzip"),
    "body too large": with_body(b" " * (LIMIT + 1)),
    "duplicate key in the body": with_body(b'{"model":"qwen3:8b","model":"qwen3:8b"}'),
    "no JSON": with_body(b"model=qwen3"),
}


@pytest.mark.parametrize("control", CHANGES)
async def test_no_route_skips_a_control(database, redis_url, control):
    """What a request must not be is refused alike wherever it is sent."""
    async with open_world(database, redis_url, max_body_bytes=LIMIT) as world:
        allowed = {"models": [MODEL, f"{EMBEDDER}:latest"]}
        key = (await world.tenant_with_key("narrow", allowed))["key"]
        await check(world, control, key, CHANGES[control])
        expected = sum(kind == "inference" for kind in KINDS.values())
        rows = await world.ledger()
        assert len(rows) == (expected if control == "nothing wrong" else 0)


async def test_no_route_takes_an_unknown_key_or_two_lengths(world):
    """A key that could be one is looked up; a body of two lengths is not read."""
    secret = (await world.rows("SELECT key_secret FROM gateway.installation"))[0]["key_secret"]
    await check(world, "unknown key", change=presenting(new_key(bytes(secret)).text))
    differences = {}
    for case in cases(world.key["key"], two_lengths):
        head = raw_http.request(f"{case.method} {case.target}", case.headers)
        async with raw_http.connect(world.port) as client:
            await client.send(head + b"0\r\n\r\n")
            answer = await client.answer(bodyless=case.method == "HEAD")
        difference = wrong(case, answer, EXPECTED["two lengths"][case.kind])
        if difference is not None:
            differences[case.target] = difference
    assert differences == {}


@pytest.mark.parametrize(
    ("control", "limits"),
    [
        ("no requests left", {"requests_per_minute": 0}),
        ("no budget left", {"budget": 0}),
    ],
)
@pytest.mark.parametrize("whose", ["tenant", "key"])
async def test_no_inference_route_skips_the_limits(world, control, limits, whose):
    """Limits of the tenant and of the key are asked on each; what costs nothing is free."""
    tenant = {"all_models": True} | (limits if whose == "tenant" else {})
    key = await world.tenant_with_key("poor", tenant, limits if whose == "key" else {})
    await check(world, control, key["key"])
    assert await world.ledger() == []


async def test_no_route_works_while_draining(world):
    """Only what tells the state goes on."""
    world.gateway.begin_drain()
    await world.gateway.refusing.wait()  # kept connections had their moment
    await check(world, "draining")


async def ready(world, status):
    """Wait until /readyz answers so."""
    with trio.fail_after(60):
        while (await world.client.get("/readyz")).status_code != status:
            pass


@pytest.fixture
def own_stores(tmp_path):
    with embedded.start(tmp_path / "data") as own:
        upgrade(own.database_url)
        fresh_redis(TestStores(own.database_url, own.redis_url))
        yield own


async def test_a_store_that_is_away_is_503_on_every_route_that_needs_it(own_stores):
    """Never a 200, never a 401 for a good key; and all is well when it is back."""
    async with open_world(own_stores.database_url, own_stores.redis_url) as world:
        await check(world, "nothing wrong")
        await world.settled()
        own_stores.redis.kill()
        await ready(world, 503)
        await check(world, "Redis away")
        own_stores.redis.start()
        await ready(world, 200)
        own_stores.postgres.kill()
        await ready(world, 503)
        await check(world, "PostgreSQL away")
        malformed = presenting("sk-tg-what")
        await check(world, "PostgreSQL away, malformed key", change=malformed)
        own_stores.postgres.start()
        await ready(world, 200)
        with trio.fail_after(60):
            while (await world.get("/api/version")).status_code != 200:
                pass


async def test_ready_is_said_only_when_a_call_is_admitted_again(own_stores):
    """Not while a Redis that lost its data waits for the holds of calls under way."""
    async with open_world(own_stores.database_url, own_stores.redis_url) as world:
        for lost in (False, True):
            own_stores.redis.kill()
            await ready(world, 503)
            if lost:
                own_stores.redis.wipe()
            own_stores.redis.start()
            await ready(world, 200)
            body = {"model": MODEL, "prompt": "one two", "stream": False}
            assert (await world.post("/api/generate", body)).status_code == 200


async def test_the_checks_come_in_their_order(database, redis_url):
    """Route, method, framing, key, encoding, size, JSON, model, limits: the first that fails."""
    async with open_world(database, redis_url, max_body_bytes=LIMIT) as world:
        poor = await world.tenant_with_key("poor", {"models": [MODEL], "requests_per_minute": 0})
        good = ("Authorization", f"Bearer {poor['key']}")
        bad, encoded = ("Authorization", "Bearer x"), ("Content-Encoding", "gzip")
        large, broken = b" " * (LIMIT + 1), b"{"
        other = orjson.dumps({"model": "absent", "messages": [{"role": "user", "content": "x"}]})
        fine = other.replace(b"absent", MODEL.encode())
        path = "/v1/chat/completions"
        for line, headers, body, status in (
            ("GET /v1/nothing", [bad, bad, encoded], large, 403),
            (f"GET {path}", [bad, bad, encoded], large, 405),
            (f"POST {path}", [bad, bad, encoded], large, 400),
            (f"POST {path}", [bad, encoded], large, 401),
            (f"POST {path}", [good, encoded], large, 415),
            (f"POST {path}", [good], large, 413),
            (f"POST {path}", [good], broken, 400),
            (f"POST {path}", [good], other, 403),
            (f"POST {path}", [good], fine, 429),
        ):
            answer = await raw_http.ask(world.port, line, headers, body)
            assert answer.status == status, (line, status)
        assert world.sim.started == 0
