"""What an operator's Prometheus sees of a gateway that serves."""

from __future__ import annotations

from collections import Counter

import pytest
import trio

from tests.integration.batching import Batcher, asks
from tests.integration.caller import NATIVE, OPENAI, PATIENCE, calling, dispatched, until
from tests.scrapes import names, read, total
from tests.world import open_world
from trio_gateway.sampling import take_sample
from trio_gateway.services.metrics import exposition
from trio_gateway.simulator.script import Script

CHAT = {"model": "llama3.2", "messages": [{"role": "user", "content": "one two three"}]}
CANARY = "canary-in-a-prompt"
KEYS, TENANTS = 150, 15


async def all_of(world):
    """Scrape the world's gateway as it is."""
    return await read(world.gateway.observer.metrics, world.postgres)


async def scraped(world):
    """Scrape the world's gateway once all is settled."""
    await world.settled()
    return await all_of(world)


async def scraped_at_the_end(world):
    """Scrape once the one batch has been counted as ended, which is soon after it has."""
    with trio.fail_after(PATIENCE):
        while not total(series := await scraped(world), "trio_gateway_batches_ended_total"):
            pass
    return series


async def some_calls(world):
    """Good and bad ones, on every inference route."""
    for stream in (False, True):
        await world.post("/v1/chat/completions", CHAT | {"stream": stream})
        await world.post("/api/chat", CHAT | {"stream": stream})
    for path in ("/v1/completions", "/api/generate"):
        await world.post(path, {"model": "llama3.2", "prompt": "one two three"})
    for path in ("/v1/embeddings", "/api/embed"):
        await world.post(path, {"model": "nomic-embed-text", "input": "one"})
    world.sim.play(Script(ending="die", after=1, tokens=5, times=1))
    await world.post("/v1/chat/completions", CHAT)


async def test_the_metrics_say_what_the_ledger_says(world):
    """Calls by endpoint, outcome and basis, tokens and charges: the sums of the rows."""
    await some_calls(world)
    rows = await world.ledger()
    series = await scraped(world)
    calls = Counter((row["endpoint"], row["outcome"], row["basis"]) for row in rows)
    assert len(calls) == 7
    for (endpoint, outcome, basis), count in calls.items():
        labels = {"endpoint": endpoint, "outcome": outcome, "basis": basis}
        assert total(series, "trio_gateway_calls_total", **labels) == count
    assert total(series, "trio_gateway_calls_total") == len(rows)
    for kind, column in (("input", "prompt_tokens"), ("output", "completion_tokens")):
        seen = total(series, "gen_ai_client_token_usage_sum", gen_ai_token_type=kind)
        assert seen == sum(row[column] for row in rows)
    charged = sum(row["charged_tokens"] for row in rows)
    assert total(series, "trio_gateway_charged_tokens_total") == charged
    for metric in (
        "trio_gateway_settle_lag_seconds",
        "trio_gateway_overhead_seconds",
        "trio_gateway_queue_wait_seconds",
        "gen_ai_server_request_duration_seconds",
    ):
        assert total(series, f"{metric}_count") == len(rows)


async def test_every_refusal_is_counted_by_its_cause(world):
    """Whoever refuses, and wherever: one code, one count."""
    limited = await world.tenant_with_key(
        "limited", {"all_models": True, "requests_per_minute": 0, "budget": None}
    )
    await world.client.post("/v1/chat/completions", json=CHAT)
    await world.post("/v1/chat/completions", CHAT | {"model": "nobody-has-this"})
    await world.post("/v1/chat/completions", CHAT | {"temperature": "warm"})
    await world.post("/v1/chat/completions", CHAT, key=limited)
    await world.get("/api/pull")
    await world.client.get("/v1/chat/completions")
    world.sim.play(Script(status=500, times=1))
    await world.post("/v1/chat/completions", CHAT)
    series = await scraped(world)
    found = {
        dict(labels)["code"]: value
        for (name, labels), value in series.items()
        if name == "trio_gateway_refusals_total" and value
    }
    assert found == dict.fromkeys(
        (
            "invalid_api_key",
            "model_not_found",
            "invalid_request",
            "rate_limit_exceeded",
            "endpoint_not_allowed",
            "method_not_allowed",
            "upstream_error",
        ),
        1,
    )


async def test_the_series_do_not_grow_with_keys_tenants_models_or_paths(database, redis_url):
    """Many keys of many tenants, made-up models and paths: not one series more."""
    async with open_world(database, redis_url) as world:
        await some_calls(world)
        await world.post("/v1/chat/completions", CHAT | {"model": "nobody-has-this"})
        await world.get("/nowhere")
        before = set(await scraped(world))
        keys = []
        for number in range(TENANTS):
            await world.accounts.create(f"tenant-{number}", {"all_models": True})
        for number in range(KEYS):
            keys.append(await world.keyring.issue(f"tenant-{number % TENANTS}", {}))
        limiter = trio.CapacityLimiter(20)

        async def use(number, key):
            async with limiter:
                await world.post("/v1/chat/completions", CHAT, key=key)
                await world.post("/v1/chat/completions", CHAT | {"model": f"m{number}"}, key=key)
                await world.get(f"/v1/{number}/nothing", key=key)

        async with trio.open_nursery() as nursery:
            for number, key in enumerate(keys):
                nursery.start_soon(use, number, key)
        after = await scraped(world)
        assert set(after) == before
        assert total(after, "trio_gateway_refusals_total", code="model_not_found") == KEYS + 1


async def test_a_revocation_is_timed_and_its_cut_counted(world):
    """From the database's clock until the call is cut, in well under a second."""
    world.sim.play(Script(tokens=50, token_gap=60))
    async with calling(world, OPENAI) as caller:
        await caller.until(b"t0")
        await world.rows("INSERT INTO gateway.revocations (key_id) VALUES ($1)", world.key["id"])
        await caller.until(b"invalid_api_key")
    series = await scraped(world)
    assert total(series, "trio_gateway_calls_cut_total", reason="revoked") == 1
    assert total(series, "trio_gateway_revocation_lag_seconds_count") == 1
    assert total(series, "trio_gateway_revocation_lag_seconds_sum") < 1
    assert total(series, "trio_gateway_calls_total", outcome="revoked") == 1


@pytest.mark.parametrize("payload", ["stamp:", "stamp:key_1", "stamp:key_1:soon", "stamp:key_1:-5"])
async def test_a_stamp_that_is_none_is_passed_over(world, payload):
    """Anybody who may write to the database may notify: that must not stop the listener."""
    await world.rows("SELECT pg_notify('gateway_changes', $1)", payload)
    await world.rows("INSERT INTO gateway.revocations (key_id) VALUES ($1)", world.key["id"])
    metrics = world.gateway.observer.metrics
    with trio.fail_after(PATIENCE):
        while not total(await read(metrics), "trio_gateway_revocation_lag_seconds_count"):  # noqa: ASYNC110
            await trio.sleep(0.01)
    assert world.gateway.revocations.listening
    assert total(await read(metrics), "trio_gateway_revocation_lag_seconds_count") == 1


async def test_what_waits_and_what_runs_is_shown_while_it_does(database, redis_url):
    """One slot, one call in it and one in line; afterwards the wait is in the histogram."""
    async with open_world(database, redis_url, backend_slots=1) as world:
        metrics = world.gateway.observer.metrics
        world.sim.play(Script(tokens=9, token_gap=60, times=1))
        async with calling(world, NATIVE) as first:
            await first.until(b"t0")
            async with calling(world, NATIVE) as second:
                await until(lambda: world.gateway.gate.backends.waiting == 1)
                metrics.sample(take_sample(world.gateway))
                series = await read(metrics)
                assert total(series, "trio_gateway_queue_depth", priority="live") == 1
                assert total(series, "trio_gateway_backend_in_flight") == 1
                assert total(series, "trio_gateway_backend_slots") == 1
                assert total(series, "trio_gateway_live_calls") == 2
                first.reset()
                await second.until(b'"done":true')
        series = await scraped(world)
        assert total(series, "trio_gateway_queue_wait_seconds_count") == 2
        assert total(series, "trio_gateway_queue_wait_seconds_sum") > 0
        assert total(series, "trio_gateway_calls_total", outcome="aborted") == 1


async def test_batches_are_counted_line_by_line(world):
    """Lines by how their runs ended, batches by how they ended, bytes by their direction."""
    batcher = Batcher(world.client, world.key)
    content = asks(3) + asks(1, "bad", temperature="warm")
    batch_id = await batcher.begin(content)
    with trio.fail_after(PATIENCE):
        while (batch := await batcher.show(batch_id))["status"] != "completed":  # noqa: ASYNC110
            await trio.sleep(0.05)
    answer = await world.get(f"/v1/files/{batch['output_file_id']}/content")
    series = await scraped_at_the_end(world)
    assert total(series, "trio_gateway_batch_lines_total", outcome="succeeded") == 3
    assert total(series, "trio_gateway_batch_lines_total", outcome="failed") == 1
    assert total(series, "trio_gateway_batches_ended_total", status="completed") == 1
    assert total(series, "trio_gateway_file_bytes_total", direction="down") == len(answer.content)
    assert total(series, "trio_gateway_file_bytes_total", direction="up") > 0
    assert total(series, "trio_gateway_calls_total", outcome="completed") == 3
    assert total(series, "trio_gateway_batches_open") == 0


async def test_a_batch_that_fails_its_validation_is_counted_too(world):
    """Nothing of it ran: no line and no call is counted."""
    batcher = Batcher(world.client, world.key)
    batch_id = await batcher.begin([*asks(1), b"{"])
    with trio.fail_after(PATIENCE):
        while (await batcher.show(batch_id))["status"] != "failed":  # noqa: ASYNC110
            await trio.sleep(0.05)
    series = await scraped_at_the_end(world)
    assert total(series, "trio_gateway_batches_ended_total", status="failed") == 1
    assert total(series, "trio_gateway_batch_lines_total") == 0
    assert total(series, "trio_gateway_calls_total") == 0


async def test_open_batches_are_shown_with_their_lines(world):
    """A line that hangs: leased, the others queued, the batch in progress."""
    world.sim.play(Script(head_delay=60))
    await Batcher(world.client, world.key).begin(asks(9))
    await dispatched(world, 4)
    series = await read(world.gateway.observer.metrics, world.postgres)
    assert total(series, "trio_gateway_batches_open", status="in_progress") == 1
    lines = {
        dict(labels)["state"]: value
        for (name, labels), value in series.items()
        if name == "trio_gateway_batch_lines_open"
    }
    assert sum(lines.values()) == 9
    assert lines["leased"] >= 4
    assert lines["succeeded"] == lines["failed"] == 0


async def test_a_drain_is_counted_once(world):
    """However often it is begun, and what it cuts."""
    world.sim.play(Script(tokens=50, token_gap=60))
    async with calling(world, OPENAI) as caller:
        await caller.until(b"t0")
        world.gateway.begin_drain()
        world.gateway.begin_drain()
        world.gateway.cut_all()
        await caller.until(b"shutting_down")
    series = await scraped(world)
    assert total(series, "trio_gateway_drains_total") == 1
    assert total(series, "trio_gateway_calls_cut_total", reason="drain") == 1


async def test_a_scrape_holds_nothing_of_a_caller(world):
    """No prompt, no answer, no key, no tenant and no id, whatever was asked."""
    key = await world.tenant_with_key("canary-tenant", key={"name": "canary-key"})
    body = {"model": "llama3.2", "messages": [{"role": "user", "content": CANARY}]}
    for model in ("llama3.2", CANARY):
        await world.post("/v1/chat/completions", body | {"model": model}, key=key)
    await world.get(f"/{CANARY}", key=key)
    await world.settled()
    text = (await exposition.scrape(world.gateway.observer.metrics, world.postgres))[0].decode()
    for word in (CANARY, "canary", key["key"], key["id"], key["public_id"], "ten_", "req_", "acme"):
        assert word not in text


async def test_tenants_and_stores_are_well_in_a_world_that_is(world):
    """The state that a new worker shows by itself, before any call."""
    with trio.fail_after(PATIENCE):
        # the first sample may be of before the models were discovered
        while not total(series := await all_of(world), "trio_gateway_catalog_models"):
            pass
    for name in ("listener_up", "redis_connected", "limiter_admitting", "database_up", "workers"):
        assert total(series, f"trio_gateway_{name}") == 1
    assert total(series, "trio_gateway_catalog_models") == 4
    assert total(series, "trio_gateway_catalog_age_seconds") < 60
    assert "trio_gateway_build_info" in names(series)
