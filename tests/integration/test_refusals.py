"""One refusal: why a key is not honored is nobody's business."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import trio

from tests import raw_http
from trio_gateway.core import keys
from trio_gateway.core.keys import PREFIX, new_key

BODY = b'{"model":"llama3.2","messages":[{"role":"user","content":"hi"}]}'
ROUTES = (
    "POST /api/chat",
    "POST /api/embed",
    "POST /v1/chat/completions",
    "POST /api/show",
    "GET /api/tags",
    "GET /api/version",
    "GET /v1/models",
    "GET /v1/models/llama3.2",
)
VARYING = {"x-request-id", "date"}


async def secret_of(world):
    """Return the secret under which the installation signs its keys."""
    return bytes((await world.rows("SELECT key_secret FROM gateway.installation"))[0]["key_secret"])


def forged(secret, public_id):
    """Make a key of a known public id whose check is right and whose secret is wrong."""
    made = new_key(secret)
    body = made.text[: -keys.CHECK_LENGTH].replace(made.public_id, public_id)
    return body + keys._check(body, secret)


async def refused_keys(world):
    """Return keys that are not honored, by the reason."""
    secret = await secret_of(world)
    past = datetime.now(UTC) - timedelta(seconds=1)
    expired = await world.keyring.issue("acme", {})
    await world.keyring.update(expired["id"], {"expires_at": past})
    disabled = await world.keyring.issue("acme", {})
    await world.keyring.disable(disabled["id"])
    revoked = await world.keyring.issue("acme", {})
    await world.keyring.revoke(revoked["id"])
    off = await world.tenant_with_key("off")
    await world.accounts.disable("off")
    gone = await world.tenant_with_key("gone")
    await world.accounts.delete("gone")
    rotated = await world.keyring.issue("acme", {})
    await world.keyring.rotate(rotated["id"], timedelta(0))
    overlapped = await world.keyring.issue("acme", {})
    await world.keyring.rotate(overlapped["id"], timedelta(seconds=0.001))
    good = world.key["key"]
    wrong_secret = forged(secret, world.key["public_id"])
    return {
        "none": None,
        "empty": "",
        "malformed": "sk-tg-what",
        "another system's": "sk-proj-" + "a" * 48,
        "wrong check": good[:-1] + ("a" if good[-1] != "a" else "b"),
        "of another installation": new_key(b"x" * 32).text,
        "unknown": new_key(secret).text,
        "wrong secret": wrong_secret,
        "expired": expired["key"],
        "disabled": disabled["key"],
        "disabled tenant": off["key"],
        "deleted tenant": gone["key"],
        "revoked": revoked["key"],
        "rotated away": rotated["key"],
        "overlap over": overlapped["key"],
        "public id alone": PREFIX + world.key["public_id"],
        "stored hash": (await world.rows("SELECT hash FROM gateway.api_keys LIMIT 1"))[0]["hash"],
        "key id": world.key["id"],
    }


def plain(answer):
    """Return all of an answer but what differs each time."""
    return (
        answer.status,
        [pair for pair in answer.headers if pair[0] not in VARYING],
        answer.body,
    )


async def test_every_unhonored_key_gets_the_same_bytes(world):
    """On each route one 401, header for header, whatever the reason; nothing goes upstream."""
    unhonored = await refused_keys(world)
    for line in ROUTES:
        body = BODY if line.startswith("POST") else None
        seen: dict[str, list[str]] = {}
        for reason, key in unhonored.items():
            headers = {} if key is None else {"Authorization": f"Bearer {key}"}
            answer = await raw_http.ask(world.port, line, headers, body)
            seen.setdefault(repr(plain(answer)), []).append(reason)
            assert answer.status == 401, (line, reason)
            if key:
                by_header = await raw_http.ask(world.port, line, {"X-Api-Key": key}, body)
                assert plain(by_header) == plain(answer), (line, reason)
        assert len(seen) == 1, (line, seen.values())
    assert world.sim.started == 0
    assert await world.ledger() == []


async def test_the_401_speaks_the_dialect_of_its_route(world):
    """OpenAI's clients find `invalid_api_key`, Ollama's a text, and both a challenge."""
    openai = await world.client.get("/v1/models")
    assert openai.json()["error"] == {
        "message": "Incorrect API key provided.",
        "type": "invalid_request_error",
        "param": None,
        "code": "invalid_api_key",
    }
    native = await world.client.get("/api/tags")
    assert native.json() == {"error": "Incorrect API key provided."}
    assert native.headers["www-authenticate"] == openai.headers["www-authenticate"] == "Bearer"


async def test_an_unproven_refusal_names_nobody_in_the_audit_log(world):
    """A wrong secret must not put its guess into the books of the key's tenant."""
    key = forged(await secret_of(world), world.key["public_id"])
    await world.client.get("/api/tags", headers={"x-api-key": key})
    rows: list[dict[str, Any]] = []
    with trio.fail_after(raw_http.LIMIT):
        while not rows:
            rows = await world.rows("SELECT code, tenant_id, key_id FROM gateway.audit_log")
    assert rows == [{"code": "invalid_api_key", "tenant_id": None, "key_id": None}]


@pytest.mark.parametrize("path", ["/", "/healthz", "/readyz"])
async def test_open_routes_answer_alike_with_any_key(world, path):
    """What needs no key does not become an oracle for keys, and tells no version."""
    answers = set()
    for key in (None, "sk-tg-what", world.key["key"]):
        headers = {} if key is None else {"Authorization": f"Bearer {key}"}
        answers.add(repr(plain(await raw_http.ask(world.port, f"GET {path}", headers))))
    assert len(answers) == 1
    assert "200" in answers.pop()


async def test_a_key_of_another_tenant_opens_only_its_own(world):
    """Two tenants' keys see their own models and leave rows of their own."""
    other = await world.tenant_with_key("other", {"models": ["qwen3:8b"]})
    mine = (await world.get("/v1/models")).json()["data"]
    theirs = (await world.get("/v1/models", other)).json()["data"]
    assert len(mine) > 1
    assert [entry["id"] for entry in theirs] == ["qwen3:8b"]
    both = {"authorization": f"Bearer {world.key['key']}", "x-api-key": other["key"]}
    assert (await world.client.get("/v1/models", headers=both)).status_code == 401
