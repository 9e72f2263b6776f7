"""What people do with the dashboard, in a real browser; run by `test_browser` through `drive`."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import re
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx

from tests.dashboard.chrome import PHONE, WIDE, browser, page_of, sign_in

MARKUP = "<img src=x onerror=alert(1)>"
SAID = {"model": "llama3.2", "messages": [{"role": "user", "content": "hello"}]}


@contextlib.contextmanager
def signed_in(base_url: str, token: str, **more: Any) -> Iterator[Any]:
    """Lend a page on which somebody is signed in."""
    with browser() as running, page_of(running, base_url, **more) as page:
        sign_in(page, token)
        yield page


def ask(gateway_url: str, key: str) -> httpx.Response:
    """Call as a client of the gateway."""
    headers = {"authorization": f"Bearer {key}"}
    return httpx.post(f"{gateway_url}/v1/chat/completions", json=SAID, headers=headers, timeout=20)


def asked_until(status: int, gateway_url: str, key: str) -> int:
    """Call until a change has come through; returns the last status."""
    deadline = time.monotonic() + 10
    while (found := ask(gateway_url, key).status_code) != status and time.monotonic() < deadline:
        pass
    return found


def from_tenant_to_revocation(base_url: str, gateway_url: str, token: str) -> list[int]:
    """Make a tenant and a key, call, see it, limit it, hit the limit, revoke, export."""
    statuses = []
    with signed_in(base_url, token) as page:
        page.get_by_role("link", name="Tenants and keys").click()
        page.get_by_role("link", name="Add a tenant").click()
        page.get_by_label("Name", exact=True).fill("billing")
        page.get_by_role("radio", name="All models").check()
        page.get_by_role("button", name="Add the tenant").click()
        page.get_by_role("heading", name="billing").wait_for()
        page.locator(".note", has_text="The tenant is there").wait_for()
        page.get_by_role("link", name="Add a key").first.click()
        page.get_by_label("Name", exact=True).fill("laptop")
        page.get_by_role("button", name="Make the key").click()
        key = page.locator("#secret").inner_text()
        assert key.startswith("sk-tg-")
        page.context.grant_permissions(["clipboard-read", "clipboard-write"])
        page.get_by_role("button", name="Copy").click()
        page.get_by_role("button", name="Copied").wait_for()
        assert page.evaluate("navigator.clipboard.readText()") == key
        assert "/keys/key_" in page.url  # loading it again makes no second key

        page.goto("/")
        tile = page.locator(".figure", has_text="Requests").locator("dd").first
        assert tile.inner_text() == "0"
        statuses.append(ask(gateway_url, key).status_code)
        tile.filter(has_text=re.compile("^1$")).wait_for()  # without a reload, and all with it
        page.get_by_role("heading", name="Tokens by tenant, last 30 days").wait_for()
        assert "billing" in page.locator("figure").nth(1).inner_text()
        tip = page.locator("figure").first.locator("rect.hit title")
        assert any("llama3.2:latest" in text for text in tip.all_text_contents())

        _to_key(page)
        page.get_by_role("link", name="Change").click()
        page.get_by_label("Requests a minute").fill("1")
        page.get_by_role("button", name="Save").click()
        page.locator(".note").wait_for()
        page.wait_for_load_state()  # the script, which asks before what cannot be undone
        statuses.append(ask(gateway_url, key).status_code)
        statuses.append(asked_until(429, gateway_url, key))
        statuses.append(_revoked(page, gateway_url, key))
        _exported(page)
    return statuses


def _to_key(page: Any) -> None:
    page.goto("/tenants?match=bill")
    page.get_by_role("link", name="billing").click()
    page.get_by_role("link", name="laptop").click()
    page.get_by_role("heading", name="laptop").wait_for()


def _revoked(page: Any, gateway_url: str, key: str) -> int:
    page.get_by_role("button", name="Revoke…").click()
    dialog = page.get_by_role("dialog")
    dialog.wait_for()
    dialog.get_by_role("button", name="Cancel").click()
    page.locator("dialog").wait_for(state="detached")
    page.get_by_role("button", name="Revoke…").click()
    page.get_by_role("dialog").get_by_label("Reason").fill(MARKUP)
    page.get_by_role("dialog").get_by_role("button", name="Revoke").click()
    page.locator(".badge", has_text="revoked").wait_for()
    status = asked_until(401, gateway_url, key)
    page.get_by_role("link", name="All of them").click()
    page.wait_for_url("**/audit?*")
    page.locator("main", has_text=MARKUP).wait_for()
    return status


def _exported(page: Any) -> None:
    page.goto("/usage?by=tenant&span=24h")
    for name, column in (("Export as CSV", "label"), ("Export every call", "tenant")):
        with page.expect_download() as download:
            page.get_by_role("link", name=name).click()
        text = Path(download.value.path()).read_text(encoding="utf-8-sig")
        rows = list(csv.DictReader(io.StringIO(text)))
        assert {row[column] for row in rows} == {"billing"}, text


def cut_a_call(base_url: str, gateway_url: str, token: str, key: str) -> str:
    """Watch a call, cut it, see it go; returns how its client was told."""
    lines: list[str] = []

    def call() -> None:
        with httpx.stream(
            "POST",
            f"{gateway_url}/v1/chat/completions",
            json=SAID | {"stream": True, "max_tokens": 2000},
            headers={"authorization": f"Bearer {key}"},
            timeout=60,
        ) as answer:
            lines.extend(answer.iter_lines())

    with signed_in(base_url, token) as page:
        page.goto("/calls")
        page.get_by_text("No call is under way").wait_for()
        caller = threading.Thread(target=call)
        caller.start()
        page.get_by_role("button", name="Cut…").click()  # the list has renewed itself
        page.get_by_role("dialog").get_by_role("button", name="Cut the call").click()
        page.locator(".note").wait_for()
        caller.join(30)
        assert not caller.is_alive()
        page.get_by_text("No call is under way").wait_for()
    told = [json.loads(line[6:]) for line in lines if line.startswith('data: {"error"')]
    assert "data: [DONE]" not in lines
    return str(told[-1]["error"]["code"])


def watch_a_batch(
    base_url: str, gateway_url: str, ollama_url: str, token: str, key: str
) -> list[str]:
    """Open a batch under way and wait until it is done, without loading the page again."""
    seen = []
    with signed_in(base_url, token) as page:
        batch = _batch(gateway_url, key)
        page.goto("/batches")
        page.get_by_role("link", name=batch).click()
        page.wait_for_url(f"**/batches/{batch}")
        page.evaluate("window.kept = true")
        for status in ("in progress", "completed"):
            page.locator("#batch .badge", has_text=status).first.wait_for()
            seen.append(page.locator("#batch progress").get_attribute("value"))
            httpx.delete(f"{ollama_url}/_sim/script").raise_for_status()  # which held them back
        assert page.evaluate("window.kept") is True
        assert page.locator("dt", has_text="Completed").count() == 2  # the count, and the step
        assert page.get_by_text("Cancel…").count() == 0
        assert page.locator("dt", has_text="Output").count() == 1
    return seen


def _batch(gateway_url: str, key: str) -> str:
    headers = {"authorization": f"Bearer {key}"}
    line = {"method": "POST", "url": "/v1/chat/completions", "body": SAID}
    text = "".join(json.dumps(line | {"custom_id": f"n{n}"}) + "\n" for n in range(12))
    with httpx.Client(base_url=gateway_url, headers=headers, timeout=20) as client:
        file = client.post(
            "/v1/files", files={"file": ("a.jsonl", text.encode())}, data={"purpose": "batch"}
        )
        wanted = {"input_file_id": file.json()["id"], "endpoint": "/v1/chat/completions"}
        batch = client.post("/v1/batches", json=wanted | {"completion_window": "24h"})
    return str(batch.json()["id"])


def without_script(base_url: str, token: str) -> bool:
    """Do what asks first, on a page without script."""
    with signed_in(base_url, token, java_script_enabled=False) as page:
        page.goto("/tenants")
        page.get_by_role("link", name="acme").click()
        page.get_by_text("Disable…").click()
        page.get_by_role("button", name="Disable", exact=True).click()
        page.locator(".title .badge", has_text="disabled").wait_for()
        page.get_by_role("button", name="Enable").click()
        page.locator(".title .badge", has_text="active").wait_for()
        page.get_by_role("button", name=re.compile("Theme")).click()
        page.locator("html[data-theme=dark]").wait_for()
        return True


def by_keyboard(base_url: str, token: str) -> list[str]:
    """Use a page by keys alone: skip link, focus that is seen, dialog, Escape, menu."""
    with signed_in(base_url, token) as page:
        page.goto("/tenants")
        page.keyboard.press("Tab")
        first = page.evaluate("document.activeElement.textContent")
        box = page.locator(".skip").bounding_box()
        assert box["y"] >= 0  # it can be seen
        page.keyboard.press("Enter")
        page.locator("#main:focus").wait_for()
        page.get_by_role("link", name="acme").focus()
        page.keyboard.press("Enter")
        page.wait_for_url("**/tenants/ten_*")  # and its script
        page.get_by_role("button", name="Delete…").focus()
        outline = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
        page.keyboard.press("Enter")
        page.get_by_role("dialog").wait_for()
        inside = page.evaluate("document.activeElement.closest('dialog') !== null")
        assert inside
        page.keyboard.press("Escape")
        page.locator("dialog").wait_for(state="detached")
        back = page.evaluate("document.activeElement.textContent")
        page.set_viewport_size(PHONE)
        page.get_by_role("link", name="Health").wait_for(state="hidden")
        page.get_by_role("button", name="Menu").focus()
        page.keyboard.press("Enter")
        page.get_by_role("link", name="Health").wait_for()
        page.keyboard.press("Escape")
        page.get_by_role("link", name="Health").wait_for(state="hidden")
        return [first, outline, back]


def faults_for_some(base_url: str, token: str, pages: list[str]) -> dict[str, list[str]]:
    """Run axe on pages in both themes; returns what is serious, by page and theme."""
    from axe_playwright_python.sync_playwright import Axe  # noqa: PLC0415 - may not be there

    found: dict[str, list[str]] = {}
    with browser() as running:
        for theme in ("light", "dark"):
            # axe is put into the page, which the page's own policy would refuse
            with page_of(running, base_url, theme=theme, bypass_csp=True) as page:
                _check(Axe(), page, "/login", theme, found)
                sign_in(page, token)
                for path in pages:
                    _check(Axe(), page, path, theme, found)
                    tables = page.locator("figure details.data > summary").all()
                    for summary in tables:
                        summary.click()
                    if tables:
                        _check(Axe(), page, path, f"{theme}, open", found, load=False)
    return found


def _check(
    axe: Any, page: Any, path: str, how: str, found: dict[str, list[str]], *, load: bool = True
) -> None:
    if load:
        page.goto(path)
    results = axe.run(page, options={"resultTypes": ["violations"]}).response
    bad = [
        f"{each['id']}: {node['html'][:150]} {node.get('failureSummary', '')[:200]}"
        for each in results["violations"]
        if each["impact"] in {"serious", "critical", "moderate"}
        for node in each["nodes"][:3]
    ]
    if bad:
        found[f"{path} ({how})"] = bad


STICKING_OUT = """() => {
  for (const details of document.querySelectorAll("details.data")) details.open = true;
  return [...document.querySelectorAll(".card, .figure")]
    .filter(card => card.scrollWidth > card.clientWidth)
    .map(card => card.innerText.slice(0, 40));
}"""


def too_wide(base_url: str, token: str, pages: list[str]) -> list[str]:
    """Return what is wider than its page or its card, on a phone or on a desk, tables opened."""
    found = []
    for size in (PHONE, WIDE):
        with signed_in(base_url, token, size=size) as page:
            for path in pages:
                page.goto(path)
                found += [f"{path}: {card}" for card in page.evaluate(STICKING_OUT)]
                width = page.evaluate("document.documentElement.scrollWidth")
                if width > size["width"]:
                    found.append(f"{path}: {width} of {size['width']}")
    return found
