"""Who may see and change what: every route of the dashboard, as the application lists them."""

from __future__ import annotations

import re
from typing import Any

from tests.dashboard.visitor import visiting
from trio_gateway.web.admin.dashboard.desk import OPEN, OWN, POLICY

SPECIAL = {"dashboard.events.events", "dashboard.static"}
EXPORTS = {"dashboard.usage.sums", "dashboard.ledger.send", "dashboard.audit.send"}
COUNTS = (
    "SELECT (SELECT count(*) FROM gateway.admin_events WHERE action <> 'admin.login') AS acts,"
    " (SELECT count(*) FROM gateway.tenants) AS tenants,"
    " (SELECT count(*) FROM gateway.api_keys) AS keys,"
    " (SELECT count(*) FROM gateway.admin_sessions) AS sessions"
)


def addresses(admin: Any, method: str, made: Any) -> dict[str, str]:
    """Return an address for every endpoint of the dashboard that takes the method."""
    found: dict[str, str] = {}
    for rule in admin.app.url_map.iter_rules():
        if rule.endpoint.startswith("dashboard.") and method in rule.methods:
            path = re.sub(r"<any\(([^,)]+)[^>]*>", r"\1", rule.rule)
            path = path.replace("<tenant_id>", made["tenant"]).replace("<key_id>", made["key"])
            path = path.replace("<batch_id>", made["batch"]).replace("<name>", "admin")
            path = path.replace("<webhook_id>", made["webhook"]).replace("<file_id>", made["file"])
            path = path.replace("<request_id>", made["request"])
            found[rule.endpoint] = path
    assert not [path for path in found.values() if "<" in path and "static" not in path]
    return found


async def test_nobody_passes_without_a_session(world, admin, made):
    """Pages lead to the login, changes are refused, and nothing of ours is in either answer."""
    before = await world.rows(COUNTS)
    for endpoint, path in addresses(admin, "GET", made).items():
        if endpoint in OPEN:
            continue
        answer = await admin.client.get(path)
        if endpoint == "dashboard.events.events":
            assert answer.status_code == 403
        else:
            assert answer.status_code == 303, path
            assert answer.headers["location"].startswith("/login")
        assert "acme" not in answer.text
    for path in addresses(admin, "POST", made).values():
        answer = await admin.client.post(path, data={"csrf": "x", "token": "x"})
        assert answer.status_code == 403, path
    assert await world.rows(COUNTS) == before


async def test_every_change_wants_a_form_of_ours(world, admin, visitor, made):
    """A missing or wrong token, or another site's page: 403 on every route, and no change."""
    right = {"csrf": visitor.csrf}
    cases: tuple[tuple[dict[str, str], dict[str, str]], ...] = (
        ({}, {}),
        ({"csrf": ""}, {}),
        ({"csrf": "0" * 43}, {}),
        ({"csrf": "é"}, {}),
        (right, {"sec-fetch-site": "cross-site"}),
        (right, {"sec-fetch-site": "same-site"}),
        (right, {"origin": "https://evil.example"}),
        (right, {"origin": "null"}),
        (right, {"origin": "http://127.0.0.1:1"}),
    )
    before = await world.rows(COUNTS)
    paths = addresses(admin, "POST", made)
    assert len(paths) >= 30
    for path in paths.values():
        for form, headers in cases:
            answer = await visitor.post(path, data=form, headers=headers)
            assert answer.status_code == 403, (path, form, headers)
            assert answer.headers["content-security-policy"] == POLICY
    assert await world.rows(COUNTS) == before


async def test_a_token_of_another_session_is_none(world, admin, made):
    """Forms are bound to the session in which they were shown."""
    async with visiting(admin) as one, visiting(admin) as other:
        one.csrf = other.csrf
        assert (await one.do(f"/tenants/{made['tenant']}/disable")).status_code == 403


async def test_a_viewer_changes_nothing_by_any_route(world, admin, made):
    """With the right token every change is a 403, but for the viewer's own session and theme."""
    async with visiting(admin, "viewer") as viewer:
        before = await world.rows(COUNTS)
        for endpoint, path in addresses(admin, "POST", made).items():
            if endpoint not in OWN | OPEN:
                assert (await viewer.do(path)).status_code == 403, path
        assert await world.rows(COUNTS) == before
        assert await viewer.done("/theme", {"theme": "dark", "back": "/tenants"}) == "/tenants"
        assert 'data-theme="dark"' in await viewer.see("/tenants")
        assert await viewer.done("/logout") == "/login"


async def test_a_viewer_sees_all_but_secrets_and_sessions(admin, made):
    """Every page but admins and the forms for changes; and no button that changes something."""
    hidden = {"dashboard.admins.listing"}
    async with visiting(admin, "viewer") as viewer:
        for endpoint, path in addresses(admin, "GET", made).items():
            if endpoint in SPECIAL | OPEN:
                continue
            form = endpoint.endswith((".create", ".edit"))
            text = await viewer.see(path, 403 if form or endpoint in hidden else 200)
            forms = set(re.findall(r'method="post" action="([^"]+)"', text))
            assert forms <= {"/theme", "/logout"}, path
        assert 'href="/admins"' not in await viewer.see("/")


async def test_every_page_is_strict_about_what_it_loads(admin, visitor, made):
    """The policy, no frame, and in the markup no inline script or style and nothing foreign."""
    pages = addresses(admin, "GET", made)
    pages["missing"] = "/no/such/page"
    for endpoint, path in pages.items():
        if endpoint in SPECIAL | EXPORTS:
            continue
        answer = await visitor.get(path)
        assert answer.status_code in {200, 303, 404}, path
        assert answer.headers["content-security-policy"] == POLICY, path
        assert answer.headers["x-frame-options"] == "DENY"
        assert answer.headers["cache-control"] == "no-store"
        assert answer.headers["x-content-type-options"] == "nosniff"
        text = answer.text
        assert not re.search(r"<style|\sstyle=|\son[a-z]+=|javascript:", text), path
        assert re.findall(r"<script(?![^>]*src=\"/static/)", text) == [], path
        assert re.findall(r'(?:src|href|action)="(?![/#])[^"]', text) == [], path
        if answer.status_code == 200:
            assert re.search(r"<title>[^<]+ · trio-gateway</title>", text), path
            assert 'lang="en"' in text
            assert 'href="#main"' in text
            assert text.count('<main id="main"') == 1


async def test_a_cookie_opens_nothing_on_the_api(visitor):
    """The API wants a token in a header: a page that rides on a session gets 401."""
    assert (await visitor.get("/admin/v1/tenants")).status_code == 401
    assert (await visitor.get("/metrics")).status_code == 401


async def test_static_files_are_kept_by_their_contents(admin, visitor):
    """Their addresses change with their contents, so that browsers may keep them for ever."""
    text = await visitor.see("/")
    for path in re.findall(r'"(/static/[^"]+)"', text):
        answer = await admin.client.get(path)
        assert answer.status_code == 200
        assert answer.headers["cache-control"] == "public, max-age=31536000"
    assert (await admin.client.get("/static/../desk.py")).status_code in {403, 404}
    assert (await admin.client.get("/static/%2e%2e/desk.py")).status_code in {403, 404}
