"""Signing in: who may, what a browser is given, and how often one may try."""

from __future__ import annotations

import pytest
import trio
from structlog.testing import capture_logs

from tests.dashboard.visitor import Visitor, visiting, words
from tests.integration.admin_world import open_admin
from tests.proxy import open_door
from trio_gateway.clients import postgres
from trio_gateway.core.officers import new_token
from trio_gateway.services.logins import ACCOUNT_MOST

PUBLIC = "https://gateway.example"


async def sessions(world):
    return await world.rows("SELECT * FROM gateway.admin_sessions ORDER BY created_at")


@pytest.mark.parametrize("role", ["admin", "viewer"])
async def test_a_token_opens_a_session(world, admin, role):
    """Both roles come to the overview; the cookie is out of scripts' and other sites' reach."""
    async with visiting(admin, None) as visitor:
        answer = await visitor.sign_in(await admin.token(role))
        assert (answer.status_code, answer.headers["location"]) == (303, "/")
        (cookie,) = [c for c in answer.headers.get_list("set-cookie") if c.startswith("tg-session")]
        assert {"HttpOnly", "SameSite=Strict", "Path=/"} <= set(cookie.split("; "))
        assert "Overview" in await visitor.see("/")
    (row,) = await sessions(world)
    assert row["role"] == role
    assert row["id"] not in cookie  # the table has a digest of the secret


async def test_over_https_the_cookie_is_bound_to_the_host(world):
    """With an https public URL both cookies are Secure and have the `__Host-` prefix."""
    async with open_admin(world, admin_public_url=PUBLIC) as admin:
        async with visiting(admin, None) as visitor:
            visitor.headers["host"] = "gateway.example"
            form = await visitor.get("/login")
            token = form.headers["set-cookie"].split("=")[1].split(";")[0]
            answer = await visitor.post(
                "/login",
                data={"csrf": token, "token": await admin.token()},
                headers={"cookie": f"__Host-tg-login={token}"},
            )
        assert answer.status_code == 303
        for cookie in (form.headers["set-cookie"], answer.headers.get_list("set-cookie")[0]):
            assert cookie.startswith("__Host-tg-")
            assert {"Secure", "HttpOnly", "SameSite=Strict", "Path=/"} <= set(cookie.split("; "))
            assert "Domain" not in cookie


async def test_the_login_waits_for_no_database_that_hangs(world, monkeypatch):
    """The form says what is away to who was signed in, and so does its answer to a token."""
    monkeypatch.setattr(postgres, "CONNECT_LIMIT", 600.0)
    monkeypatch.setattr(postgres, "COMMAND_LIMIT", 600.0)
    async with (
        open_door(world.gateway.settings.database_url) as door,
        open_admin(world, database_url=door.url) as admin,
        visiting(admin) as visitor,
    ):
        async with visiting(admin, None) as nobody:
            await nobody.see("/login")
            door.swallow()
            with trio.fail_after(60):
                asked = await visitor.get("/login")
                sent = await nobody.do("/login", {"token": new_token()})
        door.shut()  # what else asks meanwhile would wait for its limit at the end
        for answer in (asked, sent):
            assert answer.status_code == 503
            assert "PostgreSQL cannot be reached" in answer.text


async def test_every_wrong_token_gets_one_answer(admin):
    """Unknown, malformed, disabled, of the role metrics: the same page, and no session."""
    disabled = await admin.admins.create("gone", "admin")
    await admin.admins.disable("gone")
    wrong = [new_token(), "x", "é" * 40, disabled["token"], await admin.token("metrics")]
    answers = []
    async with visiting(admin, None) as visitor:
        for token in wrong:
            answer = await visitor.sign_in(token)
            answers.append((answer.status_code, words(answer.text)))
        assert "tg-session" not in visitor.cookies
    assert len(set(answers)) == 1
    assert answers[0][0] == 403


async def test_a_login_is_on_record_without_its_token(world):
    """One admin event for a login, a log line for each attempt, the token in none of them."""
    async with open_admin(world, log_level="info") as admin:
        token = await admin.token()
        async with visiting(admin, None) as visitor:
            with capture_logs() as said:
                await visitor.sign_in("wrong-token-wrong-token")
                await visitor.sign_in(token)
    events = {line["event"] for line in said}
    assert {"login", "login_failed"} <= events
    assert token not in str(said)
    assert "wrong-token" not in str(said)
    (act,) = await world.rows("SELECT * FROM gateway.admin_events WHERE action = 'admin.login'")
    assert act["actor"] == "admin:admin"
    assert token not in str(dict(act))


async def test_a_login_makes_a_new_session_and_ends_the_old(world, admin):
    """A secret that was in the browser before the login is worth nothing after it."""
    async with visiting(admin) as visitor, visiting(admin, None) as other:
        planted = visitor.cookies["tg-session"]
        await other.see("/login")
        answer = await other.post(
            "/login",
            data={"csrf": other.csrf, "token": await admin.token()},
            headers={"cookie": f"tg-login={other.cookies['tg-login']}; tg-session={planted}"},
        )
        assert answer.status_code == 303
        assert other.cookies["tg-session"] != planted
        await other.see("/")
        assert (await visitor.get("/")).status_code == 303
    assert len(await sessions(world)) == 1


async def test_too_many_failures_have_to_wait(admin):
    """After ten failures of one token at one address: 429 with Retry-After, in words too."""
    token = new_token()
    async with visiting(admin, None) as visitor:
        for _ in range(ACCOUNT_MOST):
            assert (await visitor.sign_in(token)).status_code == 403
        answer = await visitor.sign_in(token)
        assert answer.status_code == 429
        assert 0 < int(answer.headers["retry-after"]) <= 900
        assert "Try again in" in answer.text
        # another token, from the same place, is another account
        assert (await visitor.sign_in(await admin.token())).status_code == 303


@pytest.mark.parametrize(
    ("wanted", "leads_to"),
    [
        ("/tenants?match=a", "/tenants?match=a"),
        ("//evil.example/", "/"),
        ("https://evil.example/", "/"),
        ("/\\evil.example", "/"),
        ("javascript:alert(1)", "/"),
    ],
)
async def test_the_login_leads_on_to_pages_of_ours_alone(admin, wanted, leads_to):
    """The page that was wanted is opened after the login; another site's never is."""
    async with visiting(admin, None) as visitor:
        await visitor.get("/login", params={"next": wanted})
        await visitor.see("/login")
        answer = await visitor.post(
            "/login",
            params={"next": wanted},
            data={"csrf": visitor.csrf, "token": await admin.token()},
        )
    assert answer.headers["location"] == leads_to


async def test_the_login_form_has_a_token_too(admin):
    """Nobody can be signed in by a form on another site: as whoever its author chose."""
    async with visiting(admin, None) as visitor:
        await visitor.see("/login")
        token = {"token": await admin.token()}
        for form in (token, {"csrf": "", **token}, {"csrf": "x" * 43, **token}):
            assert (await visitor.post("/login", data=form)).status_code == 403
        right = {"csrf": visitor.csrf, **token}
        elsewhere = {"origin": "https://evil.example"}
        assert (await visitor.post("/login", data=right, headers=elsewhere)).status_code == 403
    async with Visitor(base_url=admin.base_url) as without_cookie:
        assert (await without_cookie.post("/login", data=right)).status_code == 403


async def test_signing_out_ends_the_session_everywhere(world, admin):
    """The cookie goes, and so does the row: a copy of the cookie opens nothing."""
    async with visiting(admin) as visitor:
        kept = visitor.cookies["tg-session"]
        assert await visitor.done("/logout") == "/login"
        assert "tg-session" not in visitor.cookies
        visitor.cookies.set("tg-session", kept)
        assert (await visitor.get("/")).headers["location"] == "/login"
    assert await sessions(world) == []


async def test_a_session_ends_by_time_by_rest_and_with_its_token(world, admin):
    """Each of them leads to the login, with the page that was wanted."""
    ends = {
        "expires": "UPDATE gateway.admin_sessions SET expires_at = now()",
        "rests": "UPDATE gateway.admin_sessions SET seen_at = now() - interval '31 minutes'",
        "token": None,
        "admin": "UPDATE gateway.admins SET expires_at = now()",
    }
    for query in ends.values():
        async with visiting(admin) as visitor:
            if query:
                await world.rows(query)
            else:
                admin.tokens["admin"] = (await admin.admins.rotate("admin"))["token"]
            answer = await visitor.get("/usage?by=tenant")
            assert answer.status_code == 303
            assert answer.headers["location"] == "/login?next=/usage%3Fby%3Dtenant"
            assert (await visitor.do("/logout")).status_code == 403


async def test_a_smaller_role_holds_from_the_next_request_on(world, admin):
    """A session keeps no role of its own: it asks what its token is worth."""
    async with visiting(admin) as visitor:
        assert "Add a tenant" in await visitor.see("/tenants")
        await world.rows("UPDATE gateway.admins SET role = 'viewer'")
        assert "Add a tenant" not in await visitor.see("/tenants")
        assert (await visitor.do("/tenants/new", {"name": "sneaky"})).status_code == 403


async def test_the_provider_has_a_button_where_it_is_set(world, admin):
    """The login offers OpenID where an issuer is configured, and not where none is."""
    assert "/login/oidc" not in (await admin.client.get("/login")).text
    async with open_admin(world, oidc_issuer="https://id.example") as other:
        assert 'href="/login/oidc"' in (await other.client.get("/login")).text
