"""Fixtures of the dashboard's tests."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from tests.dashboard.visitor import Visitor, visiting
from tests.integration.admin_world import AdminWorld, open_admin
from tests.world import World


@pytest.fixture
async def admin(world: World) -> AsyncIterator[AdminWorld]:
    async with open_admin(world) as opened:
        yield opened


@pytest.fixture
async def visitor(admin: AdminWorld) -> AsyncIterator[Visitor]:
    """Somebody of the role admin, signed in."""
    async with visiting(admin) as signed_in:
        yield signed_in
