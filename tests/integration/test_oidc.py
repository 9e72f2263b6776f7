"""Signing in to the dashboard by way of an OpenID provider, from the first click to the last."""

from __future__ import annotations

import base64
import contextlib
import hmac
import re
import sys
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from hashlib import sha256
from http.cookies import SimpleCookie
from typing import Any
from urllib.parse import parse_qs, urlsplit

import httpx
import pytest
import trio
from quart import Response, request

from tests.integration.openid_provider import (
    CLIENT_ID,
    CLIENT_SECRET,
    EC,
    OTHER_RSA,
    RSA,
    Provider,
    bound,
    create_app,
    open_provider,
    packed,
    serving,
    unsigned,
)
from trio_gateway import admin_asgi, settings
from trio_gateway.core.officers import Role, sha256_hex
from trio_gateway.gateway import CannotStart
from trio_gateway.installation import admin_environ, worker_environ
from trio_gateway.office import open_office
from trio_gateway.services import attempts

ANN: dict[str, Any] = {"preferred_username": "ann", "groups": ["staff", "gateway-admins"]}
BOB: dict[str, Any] = {"sub": "person-2", "preferred_username": "bob", "groups": "gateway-viewers"}


@dataclass
class Browser:
    """Keeps cookies and sends them as browsers do: strict ones to pages of the same site."""

    host: str = ""  # sent instead of the address
    cookies: dict[tuple[str, str], tuple[str, bool]] = field(default_factory=dict)

    async def get(
        self, url: str, *, cross: bool = False, headers: dict[str, str] | None = None
    ) -> httpx.Response:
        """Load a page; `cross` is whether another site led here. Redirects are not followed."""
        site = urlsplit(url).netloc
        sent = [
            f"{name}={value}"
            for (of, name), (value, strict) in self.cookies.items()
            if of == site and not (strict and cross)
        ]
        extra: dict[str, Any] = {"cookie": "; ".join(sent).encode("latin-1")} if sent else {}
        if self.host and site.startswith("127.0.0.1"):
            extra["host"] = self.host
        async with httpx.AsyncClient(timeout=60) as client:
            answer = await client.get(url, headers={**extra, **(headers or {})})
        for line in answer.headers.get_list("set-cookie"):
            for name, morsel in SimpleCookie(line).items():
                kept = (morsel.value, morsel["samesite"] == "Strict")
                self.cookies[site, name] = kept
                if morsel["max-age"] == "0":
                    del self.cookies[site, name]
        return answer

    def cookie(self, name: str) -> str | None:
        """Return a cookie of the dashboard."""
        found = [value for (_, known), (value, _) in self.cookies.items() if known == name]
        return found[0] if found else None


@dataclass
class Desk:
    """The dashboard, the provider, and a browser."""

    base_url: str
    app: Any
    provider: Provider
    world: Any

    @property
    def office(self) -> Any:
        """The listener's wired services."""
        return self.app.office

    def browser(self) -> Browser:
        """Return another browser."""
        return Browser()

    async def begin(self, browser: Browser) -> str:
        """Click on the login; return the address at which the provider sends the browser back."""
        answer = await browser.get(f"{self.base_url}/login/oidc")
        assert answer.status_code == 303, answer.text
        answer = await browser.get(answer.headers["location"], cross=True)
        assert answer.status_code == 302, answer.text
        return str(answer.headers["location"])

    async def sign_in(self, browser: Browser | None = None, **person: Any) -> httpx.Response:
        """Go all the way, as somebody."""
        browser = browser or self.browser()
        if person:
            self.provider.person = person
        return await browser.get(await self.begin(browser), cross=True)

    async def session(self, browser: Browser) -> Any:
        """Return the session that the browser holds, None where it is over."""
        secret = browser.cookie("tg-session")
        return await self.office.sessions.find(secret) if secret else None

    async def failures(self) -> int:
        """Return how many failures count against this address."""
        rows = await self.world.rows(
            "SELECT failures FROM gateway.login_failures WHERE scope = 'client:127.0.0.1'"
        )
        return rows[0]["failures"] if rows else 0

    async def sessions(self) -> int:
        """Return how many sessions there are."""
        rows = await self.world.rows("SELECT count(*)::int AS n FROM gateway.admin_sessions")
        return int(rows[0]["n"])


@contextlib.asynccontextmanager
async def open_desk(world: Any, provider: Provider, **overrides: Any) -> AsyncIterator[Desk]:
    listener = bound()
    base_url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    loaded = world.gateway.settings.model_copy(
        update={
            "admin_public_url": base_url,
            "oidc_issuer": provider.issuer,
            "oidc_client_id": CLIENT_ID,
            "oidc_client_secret": CLIENT_SECRET,
            "oidc_admins": "gateway-admins, root@example.com",
            "oidc_viewers": "gateway-viewers",
            **overrides,
        }
    )
    app = admin_asgi.build(lambda: loaded)
    async with serving(app, listener):
        yield Desk(base_url, app, provider, world)


@pytest.fixture
async def provider() -> AsyncIterator[Provider]:
    async with open_provider() as opened:
        yield opened


@pytest.fixture
async def desk(world: Any, provider: Provider) -> AsyncIterator[Desk]:
    async with open_desk(world, provider) as opened:
        yield opened


async def test_an_admin_signs_in(desk: Desk):
    """Whoever has a group of the admins gets a session under a name that no admin can have."""
    browser = desk.browser()
    answer = await desk.sign_in(browser, **ANN)
    assert answer.status_code == 200
    session = await desk.session(browser)
    assert (session.officer.name, session.officer.role) == ("oidc:ann", Role.ADMIN)
    assert session.officer.credential == "oidc:person-1"
    assert browser.cookie("tg-oidc") is None
    assert answer.headers["cache-control"] == "no-store"
    events = await desk.world.rows(
        "SELECT actor, after FROM gateway.admin_events WHERE action = 'admin.login'"
    )
    assert [event["actor"] for event in events] == ["admin:oidc:ann"]
    assert "person-1" in str(events[0]["after"])


@pytest.mark.parametrize(
    ("groups", "role"),
    [
        ("gateway-viewers", Role.VIEWER),
        ("gateway-admins", Role.ADMIN),
        (["gateway-viewers", "gateway-admins"], Role.ADMIN),
        (["x", "gateway-viewers"], Role.VIEWER),
    ],
)
async def test_the_claim_decides_the_role(desk: Desk, groups: Any, role: Role):
    """The claim is a text or a list, and the admins' values beat the viewers'."""
    browser = desk.browser()
    await desk.sign_in(browser, groups=groups)
    assert (await desk.session(browser)).officer.role is role


@pytest.mark.parametrize(
    "groups",
    [None, [], "", ["staff"], "gateway-admins,", "GATEWAY-ADMINS", 7, [["gateway-admins"]]],
)
async def test_whoever_has_no_role_is_refused(desk: Desk, groups: Any):
    """Without a value that the settings name there is a sentence, and no session."""
    browser = desk.browser()
    answer = await desk.sign_in(browser, groups=groups)
    assert answer.status_code == 403
    assert "gives you a role here" in answer.text
    assert (browser.cookie("tg-session"), await desk.sessions()) == (None, 0)


def hs256(claims: dict[str, Any], secret: bytes) -> str:
    signed = f"{packed({'alg': 'HS256', 'kid': 'one'})}.{packed(claims)}"
    proof = hmac.digest(secret, signed.encode(), sha256)
    return f"{signed}.{_b64(proof)}"


def _b64(value: bytes) -> str:
    return base64.urlsafe_b64encode(value).rstrip(b"=").decode()


def _signed(**changes: Any) -> Any:
    def make(provider: Provider, claims: dict[str, Any]) -> str:
        changed = {**claims, **changes}
        return provider.sign({k: v for k, v in changed.items() if v is not None})

    return make


def _changed(provider: Provider, claims: dict[str, Any]) -> str:
    head, _, proof = provider.sign(claims).split(".")
    return f"{head}.{packed({**claims, 'groups': 'gateway-admins', 'x': 1})}.{proof}"


def _critical(provider: Provider, claims: dict[str, Any]) -> str:
    head = packed({"alg": "RS256", "kid": "one", "crit": ["b64"], "b64": False})
    return f"{head}.{provider.sign(claims).partition('.')[2]}"


NOW = int(time.time())
BAD_TOKENS = {
    "nonce of another login": _signed(nonce="x" * 43),
    "no nonce": _signed(nonce=None),
    "list of nonces": lambda p, c: p.sign({**c, "nonce": [c["nonce"]]}),
    "other audience": _signed(aud="another-client"),
    "no audience": _signed(aud=None),
    "several audiences, no azp": _signed(aud=[CLIENT_ID, "another-client"]),
    "azp of another": _signed(azp="another-client"),
    "other issuer": _signed(iss="https://elsewhere.example"),
    "issuer with a slash more": lambda p, c: p.sign({**c, "iss": p.issuer + "/"}),
    "expired": _signed(exp=NOW - 3600),
    "no exp": _signed(exp=None),
    "exp as text": _signed(exp="9999999999"),
    "exp is true": _signed(exp=True),
    "exp beyond all": _signed(exp=10**40),
    "no iat": _signed(iat=None),
    "iat to come": _signed(iat=NOW + 7200),
    "nbf to come": _signed(nbf=NOW + 7200),
    "issued long ago": _signed(iat=NOW - 7200),
    "no sub": _signed(sub=None),
    "empty sub": _signed(sub=" "),
    "long sub": _signed(sub="x" * 300),
    "sub with a line": _signed(sub="a\nb"),
    "alg none": lambda _, c: unsigned(c),
    "alg none in other letters": lambda _, c: unsigned(c, "nOnE"),
    "alg none with a key": lambda _, c: unsigned(c) + "AAAA",
    "no alg": lambda _, c: unsigned(c, None),
    "alg is a list": lambda _, c: unsigned(c, ["RS256"]),
    "HS256 by the public key": lambda _, c: hs256(c, RSA.as_pem(private=False)),
    "HS256 by the client secret": lambda _, c: hs256(c, CLIENT_SECRET.encode()),
    "signed by another's key": lambda p, c: p.sign(c, OTHER_RSA),
    "key in the header": lambda p, c: p.sign(c, OTHER_RSA, jwk=OTHER_RSA.as_dict(private=False)),
    "unknown critical header": _critical,
    "claims changed": _changed,
    "ES256 by an RSA key's name": lambda p, c: p.sign(c, EC, alg="ES256"),
    "too long": lambda p, c: p.sign({**c, "filler": "x" * 70_000}),
    "not a token": lambda _, __: "not.a.token",
    "empty": lambda _, __: "",
    "claims are a list": lambda _, __: f"{packed({'alg': 'RS256', 'kid': 'one'})}.{packed([])}.",
    "header is a list": lambda _, __: f"{packed([])}.{packed({})}.",
}


@pytest.mark.parametrize("what", BAD_TOKENS)
async def test_a_token_that_proves_nothing_is_refused(desk: Desk, what: str):
    """Whatever is wrong with an ID token, there is no session, and it counts as a failure."""
    browser = desk.browser()
    desk.provider.person = ANN
    desk.provider.make_token = lambda claims: BAD_TOKENS[what](desk.provider, claims)
    answer = await desk.sign_in(browser)
    assert answer.status_code == 403
    assert "The ID token" in answer.text
    assert (browser.cookie("tg-session"), await desk.sessions()) == (None, 0)
    assert await desk.failures() == 1


@pytest.mark.parametrize(
    "changes",
    [
        {"aud": [CLIENT_ID]},
        {"aud": [CLIENT_ID, "another"], "azp": CLIENT_ID},
        {"exp": 300.5},
        {"nbf": -5.0},
        {"sub": "x" * 255},
    ],
)
async def test_what_the_standard_allows_is_accepted(desk: Desk, changes: Any):
    """The other side of the refusals: these tokens are in order; times are from now."""
    browser = desk.browser()
    changes = {
        name: time.time() + value if isinstance(value, float) else value
        for name, value in changes.items()
    }
    assert (await desk.sign_in(browser, **ANN, **changes)).status_code == 200
    assert await desk.session(browser)


@pytest.mark.parametrize("basic", [True, False])
async def test_the_secret_goes_where_the_provider_wants_it(desk: Desk, basic: bool):
    """Either way of showing the client secret works, odd signs and all."""
    desk.provider.basic = basic
    assert (await desk.sign_in(**ANN)).status_code == 200


async def test_keys_are_fetched_again_when_they_rotate(desk: Desk):
    """A key that is not known is looked for once more, and the old one is honored no longer."""
    assert (await desk.sign_in(**ANN)).status_code == 200
    assert desk.provider.count("/keys") == 1
    desk.provider.keys = {"two": EC}
    desk.provider.kid, desk.provider.algorithm = "two", "ES256"
    assert (await desk.sign_in(**ANN)).status_code == 200
    assert desk.provider.count("/keys") == 2
    desk.provider.make_token = lambda claims: desk.provider.sign(
        claims, RSA, alg="RS256", kid="one"
    )
    assert (await desk.sign_in(**ANN)).status_code == 403
    assert desk.provider.count("/.well-known/openid-configuration") == 1


async def test_unknown_keys_do_not_make_us_ask_without_end(desk: Desk):
    """However many tokens name a key that is nowhere, the provider is asked a few times only."""
    desk.provider.make_token = lambda claims: desk.provider.sign(claims, OTHER_RSA, kid="none")
    desk.provider.person = ANN
    answers = [await desk.sign_in() for _ in range(8)]
    assert {answer.status_code for answer in answers} == {403, 503}
    assert desk.provider.count("/keys") <= 6


async def test_an_answer_counts_once(desk: Desk):
    """A callback that is sent again opens nothing, not even with a code that is good."""
    browser = desk.browser()
    back = await desk.begin(browser)
    cookies = dict(browser.cookies)
    desk.provider.person = ANN
    assert (await browser.get(back, cross=True)).status_code == 200
    asked = {k: v[0] for k, v in parse_qs(urlsplit(back).query).items()}
    assert desk.provider.codes == {}
    again = Browser(cookies=cookies)
    desk.provider.codes[asked["code"]] = {"nonce": "any"}
    answer = await again.get(back, cross=True)
    assert (answer.status_code, await desk.sessions()) == (403, 1)
    assert "did not begin in this browser" in answer.text
    assert desk.provider.count("/token") == 1


async def test_an_answer_counts_in_the_browser_that_asked(desk: Desk):
    """Nobody can be signed in by a link that somebody else began, with or without a cookie."""
    mine, other = desk.browser(), desk.browser()
    back = await desk.begin(mine)
    assert (await other.get(back, cross=True)).status_code == 403
    await desk.begin(other)
    assert (await other.get(back, cross=True)).status_code == 403
    assert (desk.provider.count("/token"), await desk.sessions()) == (0, 0)


@pytest.mark.parametrize(
    "change",
    [
        lambda c: c[:-1] + ("A" if c[-1] != "A" else "B"),
        lambda c: c.replace(".", "x.", 1),
        lambda c: re.sub(r"\.\d+\.", f".{int(time.time()) + 10**6}.", c),
        lambda c: c + "x" * 500,
        lambda _: "..",
        lambda _: "",
        lambda _: "é.1.x",
    ],
)
async def test_a_changed_cookie_is_refused(desk: Desk, change: Any):
    """What the browser keeps is signed, its end as well."""
    browser = desk.browser()
    back = await desk.begin(browser)
    [(place, (value, strict))] = browser.cookies.items()
    browser.cookies[place] = change(value), strict
    assert (await browser.get(back, cross=True)).status_code == 403
    assert (desk.provider.count("/token"), await desk.sessions()) == (0, 0)


async def test_a_login_has_an_end(desk: Desk, monkeypatch: pytest.MonkeyPatch):
    """Whoever takes too long begins again."""
    monkeypatch.setattr(attempts, "LIFE", 0)
    browser = desk.browser()
    answer = await browser.get(await desk.begin(browser), cross=True)
    assert (answer.status_code, desk.provider.count("/token")) == (403, 0)


async def test_cookies_are_out_of_reach(desk: Desk):
    """The login's cookie is lax and short, the session's strict; no script sees either."""
    browser = desk.browser()
    answer = await browser.get(f"{desk.base_url}/login/oidc")
    [line] = answer.headers.get_list("set-cookie")
    assert {"HttpOnly", "SameSite=Lax", "Path=/", "Max-Age=600"} <= set(line.split("; "))
    answer = await desk.sign_in(browser, **ANN)
    [line] = [x for x in answer.headers.get_list("set-cookie") if x.startswith("tg-session=")]
    assert {"HttpOnly", "SameSite=Strict", "Path=/"} <= set(line.split("; "))


async def test_behind_tls_the_cookies_are_bound_to_the_host(world: Any, provider: Provider):
    """With an https public URL both cookies have the prefix that keeps neighbors out."""
    provider.person = ANN
    async with open_desk(world, provider, admin_public_url="https://admin.example") as desk:
        browser = Browser(host="admin.example")
        answer = await browser.get(f"{desk.base_url}/login/oidc")
        sent = parse_qs(urlsplit(answer.headers["location"]).query)
        assert sent["redirect_uri"] == ["https://admin.example/login/oidc/callback"]
        assert answer.headers["set-cookie"].startswith("__Host-tg-oidc=")
        answer = await browser.get(answer.headers["location"], cross=True)
        back = answer.headers["location"].replace("https://admin.example", desk.base_url)
        answer = await browser.get(back, cross=True)
        assert answer.status_code == 200
        for line in answer.headers.get_list("set-cookie"):
            assert line.startswith("__Host-tg-")
            assert {"Secure", "Path=/"} <= set(line.split("; "))
        assert await desk.office.sessions.find(browser.cookie("__Host-tg-session"))


async def test_the_session_is_there_on_the_first_page(desk: Desk):
    """The callback answers with a page of ours that leads on: a redirect would lose the cookie."""
    browser = desk.browser()
    answer = await desk.sign_in(browser, **ANN)
    assert answer.status_code == 200
    assert answer.headers["refresh"] == "0;url=/"
    assert 'href="/">Go on to the dashboard' in answer.text
    assert await desk.session(browser)


@pytest.mark.parametrize(
    ("error", "status"),
    [
        ("access_denied", 403),
        ("login_required", 403),
        ("<script>alert(1)</script>", 403),
        ("temporarily_unavailable", 503),
        ("server_error", 503),
    ],
)
async def test_the_providers_errors_are_told_in_our_words(desk: Desk, error: str, status: int):
    """An error ends the login, and nothing that came with it is shown."""
    browser = desk.browser()
    back = await desk.begin(browser)
    state = parse_qs(urlsplit(back).query)["state"][0]
    query = {"error": error, "error_description": "<i>their words</i>", "state": state}
    url = f"{desk.base_url}/login/oidc/callback?{httpx.QueryParams(query)}"
    answer = await browser.get(url, cross=True)
    assert answer.status_code == status
    for word in ("their words", "alert(1)", error):
        assert word not in answer.text
    assert "The provider says" in answer.text
    assert answer.headers["content-security-policy"].startswith("default-src 'none'")


@pytest.mark.parametrize(
    "query",
    ["", "state=x", "code=x", "state=a&state=b", f"state={'x' * 5000}", "state=%00&code=%ff"],
)
async def test_odd_callbacks_are_refused(desk: Desk, query: str):
    """Parameters that are missing, twice or too long end in a page, and nothing is asked."""
    answer = await desk.browser().get(f"{desk.base_url}/login/oidc/callback?{query}")
    assert answer.status_code in {400, 403}
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    assert desk.provider.count("/token") == 0


@pytest.mark.parametrize("promised", [True, False])
async def test_an_answer_of_another_issuer_is_refused(desk: Desk, promised: bool):
    """An answer that names its issuer names ours; one that should name it does."""
    desk.provider.person = ANN
    desk.provider.document = {"authorization_response_iss_parameter_supported": promised}

    async def status(addition: str) -> int:
        browser = desk.browser()
        return (await browser.get(await desk.begin(browser) + addition, cross=True)).status_code

    assert await status("&iss=https://elsewhere.example") == 403
    assert await status("") == (403 if promised else 200)
    assert await status(f"&iss={desk.provider.issuer}") == 200
    assert desk.provider.count("/token") == (1 if promised else 2)


async def test_nothing_leads_elsewhere(desk: Desk):
    """No parameter and no header changes where the provider, and the last page, lead to."""
    browser = desk.browser()
    desk.provider.person = ANN
    begun = await browser.get(
        f"{desk.base_url}/login/oidc?next=//evil.example&redirect_uri=https://evil.example/",
        headers={"x-forwarded-host": "evil.example", "referer": "https://evil.example/"},
    )
    sent = parse_qs(urlsplit(begun.headers["location"]).query)
    assert sent["redirect_uri"] == [f"{desk.base_url}/login/oidc/callback"]
    assert "evil" not in begun.headers["location"]
    back = (await browser.get(begun.headers["location"], cross=True)).headers["location"]
    answer = await browser.get(f"{back}&next=//evil.example", cross=True)
    assert (answer.status_code, "location" in answer.headers) == (200, False)
    assert "evil" not in answer.text
    other = await browser.get(f"{desk.base_url}/login/oidc", headers={"host": "evil.example"})
    assert other.status_code == 421


async def test_failures_are_throttled(desk: Desk):
    """After ten failures from one address the eleventh login waits, also a good one."""
    for _ in range(10):
        assert (await desk.sign_in(**{**ANN, "groups": "nobody"})).status_code == 403
    answer = await desk.sign_in(**ANN)
    assert (answer.status_code, int(answer.headers["retry-after"]) > 0) == (429, True)
    assert (desk.provider.count("/token"), await desk.sessions()) == (10, 0)


async def test_a_page_elsewhere_cannot_lock_out_its_visitors(desk: Desk):
    """A callback that no login of this browser began is refused, and counts for nothing."""
    for _ in range(40):
        answer = await desk.browser().get(f"{desk.base_url}/login/oidc/callback?state=x&code=y")
        assert answer.status_code == 403
    assert (await desk.sign_in(**ANN)).status_code == 200


async def test_a_session_ends_by_rest_and_by_an_operator(desk: Desk):
    """A session of this kind is as short and as revocable as any."""
    browser, other = desk.browser(), desk.browser()
    await desk.sign_in(browser, **ANN)
    await desk.sign_in(other, **BOB)
    await desk.office.sessions.end(sha256_hex(browser.cookie("tg-session") or ""))
    assert await desk.session(browser) is None
    assert await desk.session(other)
    idle = desk.office.settings.admin_session_timeout
    await desk.world.postgres.fetch(
        "UPDATE gateway.admin_sessions SET seen_at = now() - make_interval(secs => $1)", idle + 1.0
    )
    assert await desk.session(other) is None


async def test_the_role_is_asked_for_at_each_login(desk: Desk):
    """With less at the next login, the sessions that had more are over; with none, all are."""
    first, second, third = desk.browser(), desk.browser(), desk.browser()
    await desk.sign_in(first, **ANN)
    await desk.sign_in(second, **{**ANN, "groups": "gateway-viewers"})
    assert await desk.session(first) is None
    assert (await desk.session(second)).officer.role is Role.VIEWER
    await desk.sign_in(third, **{**ANN, "groups": "gateway-viewers"})
    assert await desk.session(second)
    assert (await desk.sign_in(**{**ANN, "groups": []})).status_code == 403
    assert [await desk.session(browser) for browser in (second, third)] == [None, None]


@pytest.mark.parametrize(
    ("person", "name"),
    [
        ({"preferred_username": "admin"}, "oidc:admin"),
        ({"email": "ann@example.com"}, "oidc:ann@example.com"),
        ({"preferred_username": 7}, "oidc:person-1"),
        ({"preferred_username": " "}, "oidc:person-1"),
        ({"preferred_username": "a" * 500}, "oidc:" + "a" * 63),
        ({"preferred_username": "a\u202eb\nc\x00"}, "oidc:a?b?c?"),
    ],
)
async def test_a_name_is_bounded_and_cannot_be_an_admins(desk: Desk, person: Any, name: str):
    """Whatever the provider calls somebody, it is printable, short and marked."""
    browser = desk.browser()
    await desk.sign_in(browser, groups="gateway-admins", **person)
    assert (await desk.session(browser)).officer.name == name


@pytest.mark.parametrize(("verified", "status"), [(True, 200), (False, 403), (None, 403)])
async def test_an_address_counts_if_it_is_proven(
    world: Any, provider: Provider, verified: Any, status: int
):
    """Roles by email want the provider's word that the address is this person's."""
    provider.person = {"email": "root@example.com", "email_verified": verified}
    async with open_desk(world, provider, oidc_claim="email") as desk:
        assert (await desk.sign_in()).status_code == status


async def test_the_claims_own_scope_is_asked_for_where_there_is_one(desk: Desk):
    """Providers that give groups for a scope of that name are asked for it."""
    desk.provider.document = {"scopes_supported": ["openid", "groups", "offline_access"]}
    answer = await desk.browser().get(f"{desk.base_url}/login/oidc")
    sent = parse_qs(urlsplit(answer.headers["location"]).query)
    assert sent["scope"] == ["openid profile email groups"]
    assert sent["code_challenge_method"] == ["S256"]
    assert len({*sent["state"], *sent["nonce"], *sent["code_challenge"]}) == 3


DISCOVERY = "/.well-known/openid-configuration"
BAD_PROVIDERS: dict[str, tuple[dict[str, Any], str]] = {
    "another issuer": ({"document": {"issuer": "https://elsewhere.example"}}, "to the letter"),
    "an address without TLS": (
        {"document": {"token_endpoint": "http://elsewhere.example/token"}},
        "token_endpoint",
    ),
    "an address of another kind": ({"document": {"jwks_uri": "file:///etc/passwd"}}, "jwks_uri"),
    "no address": ({"document": {"authorization_endpoint": None}}, "authorization_endpoint"),
    "no known way to show a secret": (
        {"document": {"token_endpoint_auth_methods_supported": ["private_key_jwt"]}},
        "client secret",
    ),
    "a redirect": (
        {"answers": {DISCOVERY: Response("", 302, {"location": "http://127.0.0.1:1/"})}},
        "redirects",
    ),
    "an error": ({"answers": {DISCOVERY: Response("<b>their words</b>", 500)}}, "status 500"),
    "no JSON": ({"answers": {DISCOVERY: Response("<html>", 200)}}, "no JSON object"),
    "a list": ({"answers": {DISCOVERY: Response("[]", 200)}}, "no JSON object"),
    "too much": ({"answers": {DISCOVERY: Response(" " * 300_000, 200)}}, "too long"),
}


@pytest.mark.parametrize("what", BAD_PROVIDERS)
async def test_a_provider_that_cannot_be_used_is_told_so(desk: Desk, what: str):
    """Whatever is wrong with the provider has a sentence, and nobody is led anywhere."""
    values, words = BAD_PROVIDERS[what]
    for name, value in values.items():
        setattr(desk.provider, name, value)
    answer = await desk.browser().get(f"{desk.base_url}/login/oidc")
    assert answer.status_code == 503
    assert words in answer.text
    assert "their words" not in answer.text
    assert int(answer.headers["retry-after"]) > 0
    assert answer.headers.get("location") is None


LATER: dict[str, tuple[str, Response, int, str]] = {
    "refuses the secret": ("/token", Response('{"error":"invalid_client"}', 401), 503, "secret"),
    "refuses the code": ("/token", Response('{"error":"invalid_grant"}', 400), 403, "not honor"),
    "gives no ID token": ("/token", Response('{"access_token":"x"}', 200), 503, "no ID token"),
    "is broken": ("/token", Response("oh", 502), 503, "status 502"),
    "lists no keys": ("/keys", Response('{"keys":{}}', 200), 503, "list of keys"),
}


@pytest.mark.parametrize("what", LATER)
async def test_a_provider_that_fails_later_is_told_so(desk: Desk, what: str):
    """Also past the discovery each failure has its sentence; none opens a session."""
    path, response, status, words = LATER[what]
    desk.provider.person = ANN
    desk.provider.answers = {path: response}
    answer = await desk.sign_in()
    assert (answer.status_code, await desk.sessions()) == (status, 0)
    assert words in answer.text


async def test_a_provider_that_is_away_keeps_nobody_from_starting(world: Any):
    """The listener starts without the provider, says what is wrong, and works once it is back."""
    listener = bound()
    away = Provider(issuer=f"http://localhost:{listener.getsockname()[1]}", person=dict(ANN))
    async with open_desk(world, away) as desk:
        answer = await desk.browser().get(f"{desk.base_url}/login/oidc")
        assert (answer.status_code, "cannot be reached" in answer.text) == (503, True)
        async with serving(create_app(away), listener):
            assert (await desk.sign_in()).status_code == 200


async def test_logins_at_once_are_bounded(desk: Desk):
    """A provider that keeps us waiting holds up a few logins; the others are told at once."""
    desk.provider.person = ANN
    browsers = [desk.browser() for _ in range(12)]
    backs = [await desk.begin(browser) for browser in browsers]
    held = desk.provider.hold = trio.Event()
    statuses: list[int] = []

    async def finish(browser: Browser, back: str) -> None:
        statuses.append((await browser.get(back, cross=True)).status_code)
        if len(statuses) == 4:
            held.set()

    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            for browser, back in zip(browsers, backs, strict=True):
                nursery.start_soon(finish, browser, back)
    assert statuses == [503] * 4 + [200] * 8


async def test_without_a_provider_there_is_no_such_login(world: Any, provider: Provider):
    """The pages are not there where nothing is configured."""
    async with open_desk(world, provider, oidc_issuer="") as desk:
        for path in ("/login/oidc", "/login/oidc/callback?state=x&code=y"):
            assert (await desk.browser().get(desk.base_url + path)).status_code == 404


async def test_without_the_extra_the_start_says_so(
    world: Any, provider: Provider, monkeypatch: pytest.MonkeyPatch
):
    """A provider is configured, but what proves its tokens is not installed: no start."""
    monkeypatch.setitem(sys.modules, "joserfc", None)
    monkeypatch.delitem(sys.modules, "trio_gateway.clients.id_tokens", raising=False)
    loaded = world.gateway.settings.model_copy(update={"oidc_issuer": provider.issuer})
    with pytest.raises(CannotStart, match=r"trio-gateway\[oidc\]"):
        async with open_office(loaded):
            pass


def test_workers_start_without_what_the_login_wants(monkeypatch: pytest.MonkeyPatch):
    """The client secret goes to the admin listener alone, and the workers' settings are whole."""
    values = {
        "ADMIN_PUBLIC_URL": "https://admin.example",
        "OIDC_ISSUER": "https://sso.example/",
        "OIDC_CLIENT_ID": CLIENT_ID,
        "OIDC_CLIENT_SECRET": CLIENT_SECRET,
        "OIDC_ADMINS": "gateway-admins",
    }
    for name, value in values.items():
        monkeypatch.setenv(f"TRIO_GATEWAY_{name}", value)
    given = settings.load()
    assert given.oidc_issuer == "https://sso.example/"
    worker = worker_environ(given)
    assert settings.load(worker).oidc_issuer == ""
    assert CLIENT_SECRET not in str(worker)
    assert settings.load(admin_environ(given)).oidc_client_secret == CLIENT_SECRET


@pytest.mark.parametrize(
    "issuer", ["http://sso.example", "https://sso.example/?x=1", "https://a@sso.example", "sso"]
)
def test_an_issuer_is_https_or_on_this_machine(issuer: str):
    """An issuer to which a token could be forged on the way stops the start."""
    with pytest.raises(settings.BadSettings, match="OIDC_ISSUER"):
        settings.load({}, oidc_issuer=issuer)


async def test_the_first_page_after_the_login_is_signed_in_in_a_real_browser(desk: Desk):
    """Chromium, led back from another site, sends the strict cookie with the very next page."""
    desk.provider.person, desk.provider.asks = ANN, True
    seen: dict[str, bool] = {}

    async def note(response: Response) -> Response:
        seen[request.path] = "tg-session" in request.cookies
        return response

    desk.app.after_request(note)
    command = [sys.executable, "-m", "tests.integration.click", f"{desk.base_url}/login/oidc"]
    with trio.fail_after(180):
        await trio.run_process(command)
    assert (seen["/login/oidc/callback"], seen["/"]) == (False, True)
    assert await desk.sessions() == 1
