"""A headless Chromium for the dashboard's tests; Debian's, driven by Playwright."""

from __future__ import annotations

import contextlib
import importlib.util
import shutil
import tempfile
from collections.abc import Iterator
from typing import Any

import pytest

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
PLAYWRIGHT = importlib.util.find_spec("playwright") is not None
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
WIDE = {"width": 1280, "height": 860}
PHONE = {"width": 390, "height": 844}

needs_chromium = pytest.mark.skipif(
    not (CHROMIUM and PLAYWRIGHT),
    reason="no browser test without Chromium on PATH and the Python package playwright",
)


@contextlib.contextmanager
def browser() -> Iterator[Any]:
    """Run a Chromium until the block ends; contexts of it share nothing."""
    from playwright.sync_api import sync_playwright  # noqa: PLC0415 - may not be there

    with (
        tempfile.TemporaryDirectory(prefix="chromium-", ignore_cleanup_errors=True) as home,
        sync_playwright() as playwright,
    ):
        running = playwright.chromium.launch(
            executable_path=CHROMIUM,
            args=list(FLAGS),
            env={"HOME": home, "XDG_CONFIG_HOME": home},
            timeout=90_000,
        )
        try:
            yield running
        finally:
            running.close()


@contextlib.contextmanager
def page_of(
    running: Any, base_url: str, *, size: Any = None, theme: str = "light", **more: Any
) -> Iterator[Any]:
    """Lend a page in a context of its own; what the page's console calls an error fails."""
    context = running.new_context(
        base_url=base_url, viewport=size or WIDE, color_scheme=theme, locale="en-US", **more
    )
    context.set_default_timeout(45_000)
    page = context.new_page()
    faults: list[str] = []
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.on("console", lambda line: faults.append(line.text) if _refused(line) else None)
    try:
        yield page
    finally:
        context.close()
    assert faults == []


def sign_in(page: Any, token: str) -> None:
    """Pass the login as people do."""
    page.goto("/login")
    page.get_by_label("Admin token").fill(token)
    page.get_by_role("button", name="Sign in", exact=True).click()
    page.get_by_role("heading", name="Overview", exact=True).wait_for()


def _refused(line: Any) -> bool:
    return line.type == "error" and "Content Security Policy" in line.text
