"""What several windows at once, and what happens meanwhile, do to pages; run by `test_windows`."""

from __future__ import annotations

import threading
from typing import Any, Self

import httpx

from tests.dashboard.chrome import PHONE
from tests.dashboard.journeys import signed_in

MANY = 8  # windows; browsers open six connections to a host
NARROW = {"width": 920, "height": 700}  # too narrow for the columns of a list
RENEWED = 2500  # milliseconds in which a list is renewed
FETCHED = "fetch(location.href, {headers: {'x-renewal': '1'}}).then(answer => answer.text())"
HIDE = """hidden => {
    Object.defineProperty(document, "hidden", { value: hidden, configurable: true });
    document.dispatchEvent(new Event("visibilitychange"));
}"""


class Calls:
    """Streamed calls of one key, under way until the block ends or they are cut."""

    def __init__(self, gateway_url: str, key: str, count: int) -> None:
        self._asked = (f"{gateway_url}/v1/chat/completions", {"authorization": f"Bearer {key}"})
        self._leave = threading.Event()
        self._threads = [threading.Thread(target=self._call) for _ in range(count)]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._leave.set()
        for thread in self._threads:
            thread.join(60)
            assert not thread.is_alive()

    def _call(self) -> None:
        url, headers = self._asked
        said = {"model": "llama3.2", "messages": [{"role": "user", "content": "hello"}]}
        body = said | {"stream": True, "max_tokens": 2000}
        with httpx.stream("POST", url, json=body, headers=headers, timeout=60) as answer:
            for _ in answer.iter_bytes():
                if self._leave.is_set():
                    return


def many_windows(base_url: str, token: str) -> list[str]:
    """Open more windows than a browser opens connections; returns what each says of its news."""
    with signed_in(base_url, token) as page:
        pages = [page]
        for _ in range(MANY - 1):
            pages.append(page.context.new_page())
            pages[-1].goto("/tenants")
        for each in pages:
            each.locator(".live.on").wait_for()
        said = [str(each.locator(".live").inner_text()) for each in pages]
        page.close()  # the one with the stream: another takes its place
        for each in pages[1:]:
            each.evaluate("document.querySelector('.live').textContent = 'Nothing yet'")
            each.locator(".live.on", has_text="Live, ").wait_for()
        return said


def hidden_window(base_url: str, token: str, locks: bool) -> bool:
    """Hide the only window: its stream ends; shown again it has news at once."""
    with signed_in(base_url, token) as page:
        if not locks:  # as where the listener is reached without TLS
            page.add_init_script("Object.defineProperty(navigator, 'locks', {value: undefined})")
            page.reload()
        page.locator(".live.on").wait_for()
        with page.expect_event("requestfailed", lambda sent: sent.url.endswith("/events")):
            page.evaluate(HIDE, True)
        with page.expect_request("**/events"):
            page.evaluate(HIDE, False)
        page.evaluate("document.querySelector('.live').textContent = 'Nothing yet'")
        page.locator(".live.on", has_text="Live, ").wait_for()
        return True


def signed_out_elsewhere(base_url: str, token: str) -> str:
    """Sign out in one window: each other leads to the login, and from there back."""
    with signed_in(base_url, token, size=PHONE) as page:
        page.goto("/usage?span=30d&by=tenant")
        page.locator(".live.on").wait_for()
        other, third = page.context.new_page(), page.context.new_page()
        third.goto("/calls")
        third.locator(".live.on").wait_for()
        other.goto("/tenants")
        other.get_by_role("button", name="Sign out").click()
        other.get_by_role("heading", name="Sign in").wait_for()
        link = page.get_by_role("link", name="sign in again")
        link.wait_for()
        third.get_by_role("link", name="sign in again").wait_for()
        said = " ".join(page.locator(".live").inner_text().split())
        link.click()
        page.get_by_label("Admin token").fill(token)
        page.get_by_role("button", name="Sign in", exact=True).click()
        page.wait_for_url("**/usage?span=30d&by=tenant")
        third.locator(".live.on").wait_for()  # it hears of the new session
        return said


def no_news(base_url: str, token: str) -> str:
    """Take the network away: the page says since when it has no news."""
    with signed_in(base_url, token) as page:
        page.locator(".live.on").wait_for()
        page.context.route("**/events", lambda route: route.abort())
        page.evaluate("dispatchEvent(new Event('pagehide'))")  # the stream ends
        page.evaluate("dispatchEvent(new Event('pageshow'))")  # and cannot begin again
        page.locator(".live.off").wait_for()
        return str(page.locator(".live").inner_text())


def used_while_it_renews(base_url: str, gateway_url: str, token: str, key: str) -> list[str]:
    """Look at a call's button when calls end; returns what has the focus, step by step."""
    focused = """() => {
        const at = document.activeElement;
        return (at.closest("[data-row]") ? "row " : at.id + " ") + at.tagName;
    }"""
    seen = []
    with signed_in(base_url, token, size=NARROW) as page:
        page.goto("/calls")
        with Calls(gateway_url, key, 1):
            page.get_by_text("1 call under way").wait_for()
            page.get_by_role("button", name="Cut…").click()
            page.get_by_role("dialog").wait_for()
            page.keyboard.press("Escape")
            page.locator("dialog").wait_for(state="detached")
            seen.append(page.evaluate(focused))
            row = page.evaluate("document.activeElement.closest('[data-row]').dataset.row")
            page.evaluate("document.querySelector('.scroll').scrollLeft = 60")
            with Calls(gateway_url, key, 2):
                page.get_by_text("3 calls under way").wait_for()  # though the list is in use
                seen.append(page.evaluate(focused))
                assert row == page.evaluate(
                    "document.activeElement.closest('[data-row]').dataset.row"
                )
                assert page.evaluate("document.querySelector('.scroll').scrollLeft") == 60
            page.get_by_text("1 call under way").wait_for()
        page.get_by_text("No call is under way").wait_for()
        seen.append(page.evaluate(focused))
    return seen


def pressed_while_it_renews(base_url: str, gateway_url: str, token: str, key: str) -> bool:
    """Hold a button down for longer than a renewal takes: letting it go is still a click."""
    with signed_in(base_url, token) as page, Calls(gateway_url, key, 1):
        page.clock.install()
        page.goto("/calls")
        for _ in range(2):
            page.clock.run_for(RENEWED)
        page.get_by_role("button", name="Cut…").hover()
        page.mouse.down()
        page.evaluate("document.querySelector('[data-row]').id = 'same'")
        page.clock.run_for(RENEWED)
        page.evaluate(FETCHED)  # comes after whatever the page has asked for
        assert page.locator("#same").count() == 1
        page.mouse.up()
        page.get_by_role("dialog").wait_for()
        page.keyboard.press("Escape")
        page.locator("dialog").wait_for(state="detached")
        page.clock.run_for(RENEWED)
        page.locator("#same").wait_for(state="detached")
        return True


def tables_while_they_renew(base_url: str, token: str) -> list[Any]:
    """Open the figures of a chart: renewed, they are still open, and have the focus."""
    with signed_in(base_url, token) as page:
        page.clock.install()
        page.goto("/")
        page.locator("details.data > summary").nth(1).click()
        page.evaluate("document.querySelector('#sums').firstElementChild.id = 'old'")
        page.clock.run_for(2 * RENEWED)
        page.locator("#old").wait_for(state="detached")
        opened = page.locator("details.data").evaluate_all("all => all.map(each => each.open)")
        focused = "[...document.querySelectorAll('details.data > summary')]"
        place = page.evaluate(f"{focused}.indexOf(document.activeElement)")
        return [opened, place]


def without_script(base_url: str, token: str) -> str:
    """Read the list of calls on a page without script."""
    with signed_in(base_url, token, java_script_enabled=False) as page:
        page.goto("/calls")
        return str(page.locator(".empty").inner_text())


def asked_again(base_url: str, token: str, where: str) -> list[str]:
    """Answer a question wrongly: it comes back open, with what was written; then rightly."""
    with signed_in(base_url, token) as page:
        page.goto(where)
        page.get_by_role("button", name="Increase…").click()
        page.get_by_label("Tokens more").fill("500")
        page.get_by_label("Until (UTC)").fill("2020-01-01T00:00")
        page.get_by_role("button", name="Increase", exact=True).click()
        dialog = page.get_by_role("dialog")
        dialog.get_by_text("must be in the future").wait_for()
        kept = dialog.get_by_label("Tokens more").input_value()
        focus = page.evaluate("document.activeElement.name")
        assert page.url.endswith(where)  # loading it again sends nothing again
        page.get_by_label("Until (UTC)").fill("2099-01-01T00:00")
        page.get_by_role("button", name="Increase", exact=True).click()
        page.locator(".note", has_text="The budget is increased").wait_for()
        return [kept, focus]


def asked_twice(base_url: str, token: str, where: str) -> int:
    """Click twice as fast as can be, and close and click in one go: nothing breaks."""
    with signed_in(base_url, token) as page:
        page.goto(where)
        page.evaluate(
            """() => {
                const summary = document.querySelector("details.confirm > summary");
                summary.click();
                document.querySelector("dialog").close();
                summary.click();
            }"""
        )
        page.locator("dialog").wait_for(state="detached")
        page.locator("details.confirm > summary").first.click()
        page.get_by_role("dialog").wait_for()
        return int(page.locator("dialog form").count())
