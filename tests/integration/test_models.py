"""Which models a caller may see and use: by their canonical names, and never told why."""

from __future__ import annotations

from typing import Any
from urllib.parse import quote

import pytest
import trio

from tests import raw_http
from tests.integration.caller import PATIENCE
from tests.integration.spellings import SPELLINGS, STRANGERS
from tests.world import open_world
from trio_gateway.services.catalog import _key as catalog_key
from trio_gateway.simulator.script import Script

STOCK = (
    "llama3:latest",
    "llama3:8b",
    "qwen3:8b",
    "Team/Mixed-Case:Q4",
    "nomic-embed-text:latest",
    "blocked:latest",
    "pinned:latest",
    "gpt-oss:20b-cloud",
    "minimax:cloud",
    {"name": "stub:latest", "remote_host": "https://ollama.com:443", "remote_model": "stub"},
)
USABLE = {
    "llama3:latest",
    "llama3:8b",
    "qwen3:8b",
    "team/mixed-case:q4",
    "nomic-embed-text:latest",
}
CLOUD = {"gpt-oss:20b-cloud", "minimax:cloud", "stub:latest"}
MESSAGES = [{"role": "user", "content": "hi"}]


@pytest.fixture
async def world(database, redis_url):
    async with open_world(database, redis_url, models=STOCK, discovery_interval=0.2) as opened:
        await opened.models.set("blocked:latest", {"blocked": True}, "model.block")
        await opened.models.set("pinned:latest", {"digest": "0" * 64}, "model.pin")
        with trio.fail_after(PATIENCE):
            while "pinned:latest" in await names(opened):
                pass
        yield opened


async def names(world, key=None):
    """Return the names in /v1/models."""
    return {entry["id"] for entry in (await world.get("/v1/models", key)).json()["data"]}


def calls(model):
    """Return one call for each route that names a model."""
    return [
        ("/api/chat", {"model": model, "messages": MESSAGES}),
        ("/api/chat", {"model": model, "messages": []}),
        ("/api/chat", {"model": model, "messages": [], "keep_alive": 0}),
        ("/api/generate", {"model": model, "prompt": "hi"}),
        ("/api/generate", {"model": model}),
        ("/api/embed", {"model": model, "input": "hi"}),
        ("/api/embeddings", {"model": model, "prompt": "hi"}),
        ("/api/show", {"model": model}),
        ("/api/show", {"name": model}),
        ("/v1/chat/completions", {"model": model, "messages": MESSAGES}),
        ("/v1/chat/completions", {"model": model, "messages": MESSAGES, "stream": True}),
        ("/v1/completions", {"model": model, "prompt": "hi"}),
        ("/v1/embeddings", {"model": model, "input": "hi"}),
    ]


async def every_answer(world, model, key=None):
    """Call every route with a model; return for each dialect the set of what came back."""
    found: dict[str, set[Any]] = {"native": set(), "openai": set()}
    for path, body in calls(model):
        answer = await world.post(path, body, key)
        dialect = "openai" if path.startswith("/v1") else "native"
        found[dialect].add((answer.status_code, answer.content, path if answer.is_success else ""))
    path = f"/v1/models/{quote(model, safe='/:')}"
    answer = await raw_http.ask(world.port, f"GET {path}", world.auth(key))
    found["openai"].add((answer.status, answer.body, ""))
    return found


async def test_forbidden_and_absent_models_get_the_same_403_on_every_route(world):
    """Not allowed, absent, blocked, cloud, stub and wrong digest cannot be told apart."""
    narrow = await world.tenant_with_key("narrow", {"models": ["qwen3:8b"]})
    default = await world.tenant_with_key("default", {})
    keyed = await world.tenant_with_key("keyed", None, {"models": ["qwen3:8b"]})
    cases = [(model, None) for model in ("absent", "absent:1b", "blocked", "pinned", *CLOUD)]
    cases += [("gpt-oss:20b", None), ("minimax", None), ("llama3:cloud", None)]
    cases += [(model, key) for model in ("llama3", "absent") for key in (narrow, default, keyed)]
    cases += [("qwen3:8b", default)]
    native, openai = set(), set()
    for model, key in cases:
        found = await every_answer(world, model, key)
        assert {len(answers) for answers in found.values()} == {1}, (model, found)
        native |= found["native"]
        openai |= found["openai"]
    assert {status for status, *_ in native | openai} == {403}
    assert len(native) == len(openai) == 1
    assert b'"model_not_found"' in openai.pop()[1]
    assert world.sim.started == 0
    assert "/api/show" not in world.sim.requests
    assert await world.ledger() == []


async def test_lists_hold_what_is_allowed_and_there(world):
    """Allow-all sees all but cloud and blocked; lists intersect; keys narrow; default denies."""
    for name, tenant, key, expected in (
        ("all", {"all_models": True}, {}, USABLE),
        ("cloud", {"all_models": True, "allow_cloud": True}, {}, USABLE | CLOUD),
        ("listed", {"models": ["qwen3:8b", "absent:1b", "blocked:latest"]}, {}, {"qwen3:8b"}),
        ("stub", {"models": ["stub:latest", "gpt-oss:20b-cloud"]}, {}, set()),
        ("key", {"all_models": True}, {"models": ["qwen3:8b"]}, {"qwen3:8b"}),
        ("none", {"all_models": True}, {"models": []}, set()),
        ("default", {}, {}, set()),
    ):
        issued = await world.tenant_with_key(name, tenant, key)
        shown = await names(world, issued)
        assert {shown_name.lower() for shown_name in shown} == expected, name
        tags = (await world.get("/api/tags", issued)).json()["models"]
        assert {entry["name"] for entry in tags} == shown, name


async def test_an_opted_in_tenant_uses_cloud_models_by_their_own_names(world):
    """With the opt-in they answer; a stub does too; none of it leaks who hosts them."""
    issued = await world.tenant_with_key("cloudy", {"all_models": True, "allow_cloud": True})
    for model in ("gpt-oss:20b-cloud", "gpt-oss:20b:cloud", "GPT-OSS:20b-Cloud", "stub"):
        answer = await world.post("/api/chat", {"model": model, "messages": MESSAGES}, issued)
        assert answer.status_code == 200, model
    tags = await world.get("/api/tags", issued)
    assert b"ollama.com" not in tags.content
    assert b"remote" not in tags.content


async def test_harmless_spellings_of_an_allowed_model_resolve(world):
    """They reach upstream as the catalog spells the model and come back as they were asked."""
    allowed = ["llama3:latest", "llama3:8b", "team/mixed-case:q4"]
    issued = await world.tenant_with_key("spells", {"models": allowed})
    for spelling, canonical in SPELLINGS.items():
        body = {"model": spelling, "messages": MESSAGES, "stream": False}
        native = await world.post("/api/chat", body, issued)
        openai = await world.post("/v1/chat/completions", body, issued)
        shown = await world.post("/api/show", {"model": spelling}, issued)
        statuses = [answer.status_code for answer in (native, openai, shown)]
        assert statuses == [200, 200, 200], spelling
        assert native.json()["model"] == openai.json()["model"] == spelling
        assert {item.model for item in list(world.sim.generations)[-2:]} == {canonical}
    rows = await world.ledger()
    assert {row["model"] for row in rows} == set(allowed)


async def test_no_other_spelling_reaches_a_model(world):
    """A host, path, digest, suffix or look-alike is another model: refused, nothing sent."""
    issued = await world.tenant_with_key("spells", {"models": ["llama3:latest", "llama3:8b"]})
    for key in (issued, None):
        for name in STRANGERS:
            for path, body in calls(name):
                answer = await world.post(path, body, key)
                assert answer.status_code in {400, 403}, (name, path)
                # What cannot be a name may be said to be none; what can is not found.
                if answer.status_code == 400 and path.startswith("/v1"):
                    assert answer.json()["error"]["param"] == "model"
                assert name not in answer.text or len(name) < 3
    assert world.sim.started == 0
    assert "/api/show" not in world.sim.requests


ENCODED = (
    "llama3",
    "llama3:8b",
    "llama3%3A8b",
    "library%2Fllama3",
    "library/llama3",
    "registry.ollama.ai%2flibrary%2Fllama3:8b",
    "Team/Mixed-Case%3aQ4",
)


async def test_a_model_in_a_path_may_be_encoded(world):
    """Slashes and colons, plain or encoded, name the same model, echoed as asked."""
    for path in ENCODED:
        answer = await raw_http.ask(world.port, f"GET /v1/models/{path}", world.auth())
        assert answer.status == 200
        expected = (
            path.replace("%3A", ":").replace("%3a", ":").replace("%2F", "/").replace("%2f", "/")
        )
        assert answer.json()["id"] == expected


async def test_running_models_of_others_are_not_shown(world):
    """/api/ps shows what is loaded, of the caller's models alone."""
    issued = await world.tenant_with_key("narrow", {"models": ["qwen3:8b"]})
    for model in ("llama3", "qwen3:8b"):
        await world.post("/api/chat", {"model": model, "messages": MESSAGES})
    mine = (await world.get("/api/ps", issued)).json()["models"]
    every = (await world.get("/api/ps")).json()["models"]
    assert [entry["name"] for entry in mine] == ["qwen3:8b"]
    assert {entry["name"] for entry in every} == {"llama3:latest", "qwen3:8b"}


async def test_a_change_of_what_is_allowed_holds_for_the_next_call(world):
    """A block, an unblock and a narrowed tenant are heard of while calls go on."""
    call = {"model": "qwen3:8b", "messages": MESSAGES}

    async def becomes(status):
        with trio.fail_after(PATIENCE):
            while (await world.post("/api/chat", call)).status_code != status:
                pass

    await becomes(200)
    await world.models.set("qwen3:8b", {"blocked": True}, "model.block")
    await becomes(403)
    await world.models.set("qwen3:8b", {"blocked": False}, "model.unblock")
    await becomes(200)
    await world.accounts.update("acme", {"all_models": False, "models": ["llama3:latest"]})
    await becomes(403)


async def denied(world):
    """Whether nothing at all is there, even for a tenant that may use everything."""
    answer = await world.post("/api/chat", {"model": "llama3", "messages": MESSAGES})
    return answer.status_code == 403 and await names(world) == set()


async def test_an_empty_catalog_denies_even_those_who_may_use_all(database, redis_url):
    """An upstream without models has none to use."""
    async with open_world(database, redis_url, models=()) as world:
        assert await denied(world)
        assert (await world.get("/api/tags")).json() == {"models": []}
        assert (await every_answer(world, "llama3"))["openai"].pop()[0] == 403
        assert world.sim.started == 0


async def test_a_catalog_that_is_lost_denies_until_it_is_found_again(world):
    """Models stocked upstream appear; when the key in Redis is gone, all are denied."""
    assert not await denied(world)
    (backend,) = world.gateway.gate.backends.urls
    turn = catalog_key(backend) + ":turn"  # somebody else's, to look for it
    await world.gateway.redis.command("SET", turn, "x")
    await world.gateway.redis.command("DEL", catalog_key(backend))
    with trio.fail_after(PATIENCE):
        while not await denied(world):
            pass
    await world.gateway.redis.command("DEL", turn)
    with trio.fail_after(PATIENCE):
        while await denied(world):
            pass


async def test_a_catalog_expires_when_upstream_cannot_be_asked(database, redis_url):
    """After DISCOVERY_TTL without a look nothing is allowed any more."""
    settings: Any = {"discovery_interval": 0.2, "discovery_ttl": 3}
    async with open_world(database, redis_url, models=STOCK, **settings) as world:
        assert not await denied(world)
        world.sim.play(Script(path="/api/tags", status=500))
        with trio.fail_after(PATIENCE):
            while not await denied(world):
                pass
        world.sim.play()
        with trio.fail_after(PATIENCE):
            while await denied(world):
                pass
