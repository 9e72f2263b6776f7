"""What holds on every route of the admin API: who may, what is understood, what is refused."""

from __future__ import annotations

import json

import pytest

from tests.integration.admin_world import open_admin, operations
from tests.raw_http import connect
from trio_gateway.admin_asgi import app as described
from trio_gateway.web.admin.cookies import PLAIN_NAME, SECURE_NAME

HOOK = "https://hooks.example/budgets"
ALL = operations(described)
CHANGES = [each for each in ALL if each.method != "GET"]
READS = [each for each in ALL if each.method == "GET"]
EXAMPLES = {
    "string": "some",
    "integer": 1,
    "number": 1.0,
    "boolean": True,
    "array": [],
    "null": None,
}


@pytest.fixture
async def admin(world):
    async with open_admin(world, webhook_hosts="hooks.example") as opened:
        yield opened


def named(operation):
    return f"{operation.method} {operation.path}"


def example(schema):
    """Return a body of the right types."""
    body = {}
    for name, field in schema["properties"].items():
        kinds = field.get("anyOf", [field])
        first = kinds[0]
        body[name] = (
            first["enum"][0]
            if "enum" in first
            else "2099-01-01T00:00:00Z"
            if first.get("format") == "date-time"
            else "0" * 64
            if name == "digest"
            else EXAMPLES[first["type"]]
        )
    return body


def test_every_route_of_the_api_is_described():
    """What is served below /admin/v1 is in the description, with nothing left out."""
    served = {
        (method, rule.rule.replace("<path:", "<").replace("<", "{").replace(">", "}"))
        for rule in described.url_map.iter_rules()
        if rule.rule.startswith("/admin/v1")
        for method in (rule.methods or set()) - {"HEAD", "OPTIONS"}
    }
    assert served == {(each.method, f"/admin/v1{each.path}") for each in ALL}
    assert len(CHANGES) > 25


async def test_nobody_without_a_token_comes_in(admin):
    """Without a token, with a wrong one and with a caller's key: one and the same 401."""
    key = admin.world.key["key"]
    answers = set()
    for headers in ({}, {"authorization": "Bearer tga-wrong"}, {"x-api-key": key}):
        for operation in ALL:
            answer = await admin.client.request(
                operation.method, f"/admin/v1{operation.at()}", headers=headers
            )
            assert answer.status_code == 401, named(operation)
            answers.add(answer.content)
    (only,) = answers
    assert json.loads(only)["error"]["code"] == "invalid_admin_token"


@pytest.mark.parametrize(
    ("host", "name"), [("localhost", PLAIN_NAME), ("gateway.example", SECURE_NAME)]
)
async def test_a_cookie_is_no_token(world, host, name):
    """A session that opens the dashboard, by either of its names, opens nothing here."""
    async with open_admin(world, admin_public_url="https://gateway.example") as admin:
        officer = await admin.office.admins.prove(await admin.token())
        secret = await admin.office.sessions.open(officer, None)
        headers = {"host": host, "cookie": f"{name}={secret}"}
        assert (await admin.client.get("/", headers=headers)).status_code == 200
        for operation in READS:
            path = f"/admin/v1{operation.at(tenant='acme')}"
            answer = await admin.client.get(path, headers=headers)
            assert answer.status_code == 401, named(operation)


async def test_a_browser_is_told_to_stay_with_tls_where_a_proxy_speaks_it(world):
    """On every answer under the public URL, and on none under another or a malformed Host."""
    async with open_admin(world, admin_public_url="https://gateway.example") as admin:
        for path in ("/login", "/admin/v1/tenants", "/healthz", "/no/such/page"):
            for host, told in (("gateway.example", True), ("localhost", False)):
                answer = await admin.client.get(path, headers={"host": host})
                assert ("strict-transport-security" in answer.headers) is told, (path, host)
        for host in ("other.example", "[::1", "gateway.example:port", ""):
            answer = await admin.client.get("/login", headers={"host": host})
            assert answer.status_code == 421, host
            assert "strict-transport-security" not in answer.headers


async def test_a_viewer_changes_nothing_by_any_route(admin):
    """Every change is 403, with a whole body and without one; the record stays as it was."""
    before = await admin.world.rows("SELECT count(*) FROM gateway.admin_events")
    await admin.token("viewer")
    recorded = await admin.world.rows("SELECT count(*) FROM gateway.admin_events")
    for operation in CHANGES:
        names = {"tenant": "acme", "key": admin.world.key["id"]}
        bodies = [None] if operation.body is None else [None, example(operation.body)]
        for body in bodies:
            answer = await admin.ask(operation.method, operation.at(**names), body, role="viewer")
            assert answer.status_code == 403, named(operation)
            assert answer.json()["error"]["code"] == "role_not_allowed"
    assert await admin.world.rows("SELECT count(*) FROM gateway.admin_events") == recorded != before
    for operation in READS:
        answer = await admin.ask("GET", operation.at(tenant="acme"), role="viewer")
        kept = operation.path.startswith(("/admins", "/sessions"))
        expected = {403} if kept or operation.path.endswith("/content") else {200, 400, 404}
        assert answer.status_code in expected, named(operation)


async def test_the_metrics_role_reads_metrics_alone(admin):
    """Every route of the API is 403 for it, and /metrics is for each role."""
    for operation in ALL:
        answer = await admin.ask(operation.method, operation.at(), role="metrics")
        assert answer.status_code == 403, named(operation)
    for role in ("metrics", "viewer", "admin"):
        answer = await admin.client.get("/metrics", headers=await admin.auth(role))
        assert answer.status_code == 200
    assert (await admin.client.get("/metrics")).status_code == 401


async def test_bodies_are_read_to_the_letter(admin):
    """An unknown field, a duplicate, a twin, another type, trailing words: 400 by name."""
    for operation in [each for each in ALL if each.body]:
        await check_bodies_of(admin, operation)


async def check_bodies_of(admin, operation):
    schema, whole = operation.body, example(operation.body)
    first, text = next(iter(schema["properties"])), json.dumps(whole)

    async def refused(content, param, status=400, **headers):
        answer = await admin.ask(
            operation.method,
            operation.at(),
            content=content,
            headers={"content-type": "application/json"} | headers,
        )
        assert answer.status_code == status, (named(operation), answer.text)
        assert answer.json()["error"]["param"] == param, (named(operation), answer.text)

    await refused(json.dumps(whole | {"surprise": 1}), "surprise")
    await refused(f'{{"{first}": {json.dumps(whole[first])}, {text[1:]}', first)
    await refused(json.dumps(whole | {first.upper(): 1}), first)
    for name in schema["properties"]:
        await refused(json.dumps(whole | {name: {"an": "object"}}), name)
    for malformed in (text + "1", text[:-1], "[]", "null", "\ufeff" + text, "NaN"):
        await refused(malformed, None)
    await refused(text, None, 415, **{"content-encoding": "identity"})
    await refused(text, None, 415, **{"content-type": "text/plain"})
    await refused(text, None, 415, **{"content-type": "application/x-www-form-urlencoded"})
    await refused(b'{"a":"' + b"x" * 1024 * 1024 + b'"}', None, 413)


async def test_parameters_that_nobody_knows_are_refused(admin):
    """Unknown, or given twice: 400 by name; and a body where none belongs is no body."""
    for operation in ALL:
        for query, param in (("surprise=1", "surprise"), ("limit=1&limit=1", "limit")):
            answer = await admin.ask(operation.method, f"{operation.at()}?{query}")
            assert (answer.status_code, answer.json()["error"]["param"]) == (400, param)
        if operation.body is None:
            answer = await admin.ask(operation.method, operation.at(), {"surprise": 1})
            assert (answer.status_code, answer.json()["error"]["param"]) == (400, "surprise")


OUT_OF_RANGE = (
    ("/tenants?limit=0", "limit"),
    ("/tenants?limit=1001", "limit"),
    ("/tenants?limit=1_0", "limit"),
    ("/tenants?limit=", "limit"),
    ("/keys?cursor=key_gone", "cursor"),
    ("/files?cursor=nothing", "cursor"),
    ("/batches?cursor=nothing", "cursor"),
    ("/batches?status=resting", "status"),
    ("/ledger?cursor=%25%00", "cursor"),
    ("/ledger?cursor=MDAwMS0wMS0wMVQwMDowMDowMCsyMzowMCB4", "cursor"),
    ("/ledger?since=yesterday", "since"),
    ("/ledger?since=1700000000", "since"),
    ("/ledger?since=2026-01-01T00:00:00", "since"),
    ("/ledger?since=0001-01-01T00:00:00%2B23:00", "since"),
    ("/ledger?model=%2F%2F", "model"),
    ("/ledger?format=xml", "format"),
    ("/ledger?format=csv&limit=5", "limit"),
    ("/usage?by=key", "by"),
    ("/usage?most=51", "most"),
    ("/usage?since=2030-01-02T00:00:00Z&until=2030-01-01T00:00:00Z", "since"),
    ("/usage?since=2020-01-01T00:00:00Z&until=2030-01-01T00:00:00Z", "since"),
    ("/usage/keys", "tenant"),
    ("/audit/acts?cursor=99999999999999999999", "cursor"),
    ("/notices?threshold=90", "threshold"),
)


async def test_parameters_out_of_range_are_named(admin):
    """Each is 400, and `param` says which."""
    for path, param in OUT_OF_RANGE:
        answer = await admin.ask("GET", path)
        found = (answer.status_code, answer.json()["error"]["param"])
        assert found == (400, param), (path, answer.text)


async def test_names_of_nothing_are_404(admin):
    """On every route that names something, whatever the name is made of."""
    names = ("ghost", "%00", "%F0%9F%91%BB", "'%20OR%201=1--", "a" * 3000, "%ED%A0%80")
    for operation in [each for each in ALL if "{" in each.path and each.body is None]:
        parameter = next(p["name"] for p in operation.document["parameters"] if p["in"] == "path")
        for name in names:
            answer = await admin.ask(operation.method, operation.at(**{parameter: name}))
            assert answer.status_code == 404, (named(operation), name, answer.text)
            if operation.path.endswith(f"{{{parameter}}}"):
                assert answer.json()["error"]["param"] == parameter, named(operation)


async def test_a_name_of_nobody_is_404_by_the_field_it_is_in(admin):
    """In a body, in the query or in the path; a path that there is not has no field."""
    key = admin.world.key["id"]
    for method, path, body, param in (
        ("POST", "/keys", {"tenant": "ghost"}, "tenant"),
        ("POST", "/webhooks", {"name": "w", "url": HOOK, "tenant": "ghost"}, "tenant"),
        ("GET", "/keys?tenant=ghost", None, "tenant"),
        ("GET", f"/keys/{key}?tenant=ghost", None, "tenant"),
        ("GET", "/ledger?tenant=ghost", None, "tenant"),
        ("GET", "/ledger?key=ghost", None, "key"),
        ("GET", "/usage?tenant=ghost", None, "tenant"),
        ("GET", "/usage/totals?tenant=ghost", None, "tenant"),
        ("GET", "/usage/keys?key=ghost", None, "key"),
        ("GET", "/batches?tenant=ghost", None, "tenant"),
        ("GET", "/files?tenant=ghost", None, "tenant"),
        ("GET", "/notices?tenant=ghost", None, "tenant"),
        ("GET", "/calls?tenant=ghost", None, "tenant"),
        ("GET", "/nothing", None, None),
    ):
        answer = await admin.ask(method, path, body)
        assert answer.status_code == 404, (method, path, answer.text)
        assert answer.json()["error"]["param"] == param, (method, path)


HOSTS = (
    "evil.example",
    "127.0.0.1.evil.example",
    "localhost@evil.example",
    "",
    "evil.example:8081",
    "169.254.169.254",
)


async def test_a_page_elsewhere_cannot_reach_the_listener_by_a_name_of_its_own(admin):
    """DNS rebinding: a Host that is not ours is 421 or 400, with a token and without."""
    token = f"Authorization: Bearer {await admin.token()}\r\n"
    for host in HOSTS:
        for line in (token, ""):
            async with connect(admin.port) as client:
                await client.send(
                    f"GET /admin/v1/tenants HTTP/1.1\r\nHost: {host}\r\n{line}\r\n".encode()
                )
                answer = await client.answer()
            assert answer.status in {400, 421}, host
            assert b"acme" not in answer.body


async def test_headers_that_say_who_are_there_once(admin):
    """Two of them are 400, even where both are good."""
    token = await admin.token()
    for name, value in (
        ("Authorization", f"Bearer {token}"), ("X-Api-Key", token), ("Host", "localhost")
    ):  # fmt: skip
        lines = ["GET /admin/v1/tenants HTTP/1.1", "Host: localhost", f"{name}: {value}"]
        if name != "Host":
            lines.append(f"{name}: {value}")
        async with connect(admin.port) as client:
            await client.send("\r\n".join([*lines, "", ""]).encode())
            assert (await client.answer()).status == 400, name


async def test_answers_are_kept_by_nobody_and_framed_by_nobody(admin):
    """Every answer, errors too, carries the headers that say so."""
    for path in ("/tenants", "/nothing", "/docs"):
        answer = await admin.ask("GET", path)
        assert answer.headers["cache-control"] == "no-store"
        assert answer.headers["x-frame-options"] == "DENY"
        assert "default-src 'none'" in answer.headers["content-security-policy"]
        assert answer.headers["x-content-type-options"] == "nosniff"


async def test_methods_that_a_route_has_not_are_405(admin):
    """With the ones that it has in Allow."""
    answer = await admin.ask("PUT", "/tenants/acme", {})
    assert (answer.status_code, answer.json()["error"]["code"]) == (405, "method_not_allowed")
    assert {"GET", "PATCH", "DELETE"} <= set(answer.headers["allow"].split(", "))


async def test_a_refused_body_leaves_its_connection_usable(admin):
    """Refused before it was read, for its size or its bearer: the next request is answered."""
    large = b"x" * (1024 * 1024 + 1)
    nobody: dict[str, str] = {}
    for headers in (await admin.auth(), await admin.auth("viewer"), nobody):
        for _ in range(20):
            refused = await admin.client.post("/admin/v1/tenants", content=large, headers=headers)
            assert refused.status_code in {401, 403, 413}
            assert (await admin.client.get("/healthz")).status_code == 200


async def test_a_body_without_a_length_has_the_same_limit(admin):
    """Sent piece by piece, it is refused when it has grown too large."""

    async def pieces():
        for _ in range(20):
            yield b"x" * 65_536

    headers = await admin.auth() | {"content-type": "application/json"}
    refused = await admin.client.post("/admin/v1/tenants", content=pieces(), headers=headers)
    assert (refused.status_code, refused.json()["error"]["code"]) == (413, "request_too_large")


async def test_a_body_that_never_ends_holds_nobody_up(admin):
    """The answer comes though the rest of the body does not, and says that it is the last."""
    async with connect(admin.port) as client:
        await client.send(
            b"POST /admin/v1/tenants HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99\r\n\r\n{"
        )
        answer = await client.answer()
        assert (answer.status, answer.header("connection")) == (401, "close")
