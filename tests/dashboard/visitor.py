"""Somebody who uses the dashboard without a browser: keeps cookies, reads forms."""

from __future__ import annotations

import contextlib
import re
from collections.abc import AsyncIterator, Mapping
from typing import Any

import httpx

from tests.integration.admin_world import AdminWorld
from trio_gateway.core.officers import Role

_TOKEN = re.compile(r'name="csrf" value="([^"]+)"')
_TAGS = re.compile(r"<[^>]+>|\s+")


class Visitor(httpx.AsyncClient):
    """A client of the listener; `csrf` is the token of the forms it was shown last."""

    csrf: str = ""

    async def see(self, path: str, status: int = 200) -> str:
        """Return a page."""
        answer = await self.get(path)
        assert answer.status_code == status, (path, answer.status_code, words(answer.text))
        found = _TOKEN.search(answer.text)
        self.csrf = found.group(1) if found else self.csrf
        return answer.text

    async def do(self, path: str, form: Mapping[str, Any] | None = None) -> httpx.Response:
        """Send a form, with its token."""
        return await self.post(path, data={"csrf": self.csrf, **(form or {})})

    async def done(self, path: str, form: Mapping[str, Any] | None = None) -> str:
        """Send a form that is to succeed, and return where it leads."""
        answer = await self.do(path, form)
        assert answer.status_code == 303, (path, answer.status_code, words(answer.text))
        return answer.headers["location"]

    async def sign_in(self, token: str) -> httpx.Response:
        """Pass the login, or fail to."""
        await self.see("/login")
        answer = await self.do("/login", {"token": token})
        if answer.status_code == 303:
            await self.see("/health")
        return answer


@contextlib.asynccontextmanager
async def visiting(admin: AdminWorld, role: str | None = Role.ADMIN) -> AsyncIterator[Visitor]:
    """Lend a visitor, signed in as somebody of this role, or as nobody."""
    async with Visitor(base_url=admin.base_url, timeout=20) as visitor:
        if role is not None:
            assert (await visitor.sign_in(await admin.token(role))).status_code == 303
        yield visitor


def words(text: str) -> str:
    """Return what a page says, without its tags."""
    return _TAGS.sub(" ", text)[-1500:]
