"""Takes pictures of pages; see `screenshots`."""

from __future__ import annotations

from pathlib import Path

from tests.dashboard.chrome import PHONE, WIDE, browser, page_of, sign_in

SIZES = {"wide": WIDE, "phone": PHONE}
THEMES = ("light", "dark")
SETTLE = 1500  # milliseconds until live numbers have come


def take(base_url: str, token: str, pages: dict[str, str], out: str, picture: str | None) -> int:
    """Take every page at each width in each theme, and the one picture; returns how many."""
    taken = 0
    with browser() as running:
        for theme in THEMES:
            for width, size in SIZES.items():
                with page_of(running, base_url, size=size, theme=theme) as page:
                    page.goto("/login")
                    page.screenshot(path=Path(out) / f"login-{width}-{theme}.png")
                    sign_in(page, token)
                    for name, path in pages.items():
                        page.goto(path)
                        page.wait_for_timeout(SETTLE if name == "overview" else 100)
                        place = Path(out) / f"{name}-{width}-{theme}.png"
                        page.screenshot(path=place, full_page=True)
                        taken += 1
        if picture:
            with page_of(running, base_url, size=WIDE) as page:
                sign_in(page, token)
                page.wait_for_timeout(SETTLE)
                page.screenshot(path=picture)
    return taken
