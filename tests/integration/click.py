"""Open an address in Chromium, click on the link there, and wait for a page of the dashboard.

A process of its own: Playwright has an event loop, and trio-asyncio changes those of a process.
"""

import shutil
import sys
from urllib.parse import urlsplit

from playwright.sync_api import sync_playwright

PAGES = {"/", "/login"}


def click(url: str) -> None:
    """Load it, click, and follow wherever that leads."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=shutil.which("chromium"), args=["--no-sandbox"]
        )
        try:
            page = browser.new_page()
            page.goto(url)
            page.click("a")
            page.wait_for_url(lambda found: urlsplit(found).path in PAGES, timeout=60_000)
            page.wait_for_load_state()
        finally:
            browser.close()


if __name__ == "__main__":
    click(sys.argv[1])
