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


@pytest.fixture
async def made(world):
    """Something for every kind of id."""
    file = await world.client.post(
        "/v1/files",
        files={"file": ("lines.jsonl", b"{}\n", "application/jsonl")},
        data={"purpose": "batch"},
        headers=world.auth(),
    )
    assert file.status_code == 200, file.text
    body = {"input_file_id": file.json()["id"], "endpoint": "/v1/embeddings"}
    batch = await world.post("/v1/batches", body | {"completion_window": "24h"})
    assert batch.status_code == 200, batch.text
    body = {"model": "llama3.2", "messages": [{"role": "user", "content": "hello"}]}
    call = await world.post("/v1/chat/completions", body)
    await world.settled()
    await world.rows(
        "INSERT INTO gateway.webhooks (id, name, url, secret) VALUES"
        " ('wh_some', 'some', 'https://hooks.example.com/', 'whsec_c29tZQ==')"
    )
    return {
        "tenant": world.tenant["id"],
        "key": world.key["id"],
        "batch": batch.json()["id"],
        "file": file.json()["id"],
        "webhook": "wh_some",
        "request": call.headers["x-request-id"],
    }
