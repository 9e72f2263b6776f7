"""Spans of real calls, as a collector receives them over OTLP."""

from __future__ import annotations

import subprocess
import sys
import time

import pytest
import trio

from tests.integration.batching import Batcher, asks
from tests.integration.caller import NATIVE, PATIENCE, calling
from tests.otlp import attributes, collecting
from tests.world import open_world
from trio_gateway.core.timeline import PHASES
from trio_gateway.simulator.script import Script

CHAT = {"model": "llama3.2", "messages": [{"role": "user", "content": "canary-prompt"}]}
TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
INTERNAL, SERVER, CLIENT, CONSUMER = 1, 2, 3, 5  # kinds of spans
ERROR = 2  # a status
NAMES = [name for name, _ in PHASES]


@pytest.fixture
def collector(monkeypatch):
    with collecting() as running:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", running.url)
        yield running


@pytest.fixture
def traced(collector, database, redis_url):
    """Opens a world whose spans are all at the collector once it is closed."""

    def opened(**settings):
        return open_world(database, redis_url, **settings)

    return opened


def children(collector, root):
    return sorted(
        (span for span in collector.spans if span.parent_span_id == root.span_id),
        key=lambda span: (span.start_time_unix_nano, span.end_time_unix_nano),
    )


@pytest.mark.parametrize("stream", [True, False])
async def test_a_call_has_a_root_and_one_span_for_each_phase(traced, collector, stream):
    """They follow each other without a gap, and fill the whole of the call."""
    began = time.time_ns()
    async with traced() as world:
        answer = await world.post("/v1/chat/completions", CHAT | {"stream": stream})
        (row,) = await world.ledger()
    (root,) = collector.roots()
    phases = children(collector, root)
    assert [span.name for span in phases] == NAMES
    assert len(collector.spans) == 1 + len(NAMES)
    assert {span.trace_id for span in collector.spans} == {root.trace_id}
    assert began <= root.start_time_unix_nano <= root.end_time_unix_nano <= time.time_ns()
    edges = [root.start_time_unix_nano, *(span.end_time_unix_nano for span in phases)]
    starts = [span.start_time_unix_nano for span in phases]
    assert all(abs(a - b) <= 1000 for a, b in zip(starts, edges, strict=False))
    assert abs(edges[-1] - root.end_time_unix_nano) <= 1000
    assert (root.kind, root.name) == (SERVER, "chat llama3.2:latest")
    assert {span.name for span in phases if span.kind == CLIENT} == {"first_byte"}
    assert attributes(root) == {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "ollama",
        "gen_ai.request.model": "llama3.2:latest",
        "gen_ai.usage.input_tokens": row["prompt_tokens"],
        "gen_ai.usage.output_tokens": row["completion_tokens"],
        "http.response.status_code": 200,
        "http.route": "/v1/chat/completions",
        "trio_gateway.basis": "final",
        "trio_gateway.batch": False,
        "trio_gateway.charged_tokens": row["charged_tokens"],
        "trio_gateway.outcome": "completed",
        "trio_gateway.request_id": answer.headers["x-request-id"],
    }
    assert collector.paths == ["/v1/traces"] * len(collector.paths)
    assert collector.resources[0]["service.name"] == "trio-gateway"


async def test_a_callers_trace_goes_on_here(traced, collector):
    """The root is a child of the span that the traceparent names."""
    async with traced() as world:
        header = {"traceparent": f"00-{TRACE}-{SPAN}-01"}
        await world.post("/api/chat", CHAT | {"stream": False}, headers=header)
    (root,) = collector.roots()
    assert (root.trace_id.hex(), root.parent_span_id.hex()) == (TRACE, SPAN)
    assert len(children(collector, root)) == len(NAMES)


async def test_a_callers_trace_that_is_not_kept_is_not_sent(traced, collector):
    """The sampled flag is heeded, as the usual sampler does."""
    async with traced() as world:
        for flags in ("00", "01"):
            header = {"traceparent": f"00-{TRACE}-{SPAN}-{flags}"}
            await world.post("/api/chat", CHAT | {"stream": False}, headers=header)
    assert len(collector.roots()) == 1


@pytest.mark.parametrize(
    "headers",
    [
        [("traceparent", f"00-{TRACE}-{SPAN}-01x")],
        [("traceparent", "canary-header")],
        [("traceparent", f"00-{TRACE}-{SPAN}-01"), ("traceparent", f"00-{TRACE}-{SPAN}-01")],
    ],
)
async def test_a_bad_traceparent_begins_a_trace_of_its_own(traced, collector, headers):
    """Badly made, or there twice: not heeded, and not an error either."""
    async with traced() as world:
        answer = await world.client.post(
            "/v1/chat/completions", json=CHAT, headers=[*headers, *world.auth().items()]
        )
        assert answer.status_code == 200
    (root,) = collector.roots()
    assert root.trace_id.hex() != TRACE
    assert root.parent_span_id == b""


async def test_a_lost_client_ends_the_phase_that_it_left_in(traced, collector):
    """Hung up while the model was loading: no stream, an error, and still a settled account."""
    async with traced() as world:
        world.sim.play(Script(head_delay=60))
        async with calling(world, NATIVE) as caller:
            await world.sim.until(lambda sim: sim.open == 1)
            caller.reset()
            await world.sim.until(lambda sim: not sim.open)
        await world.settled()
    (root,) = collector.roots()
    phases = children(collector, root)
    assert [span.name for span in phases] == ["authenticate", "parse", "admit", "queue",
                                              "first_byte", "settle"]  # fmt: skip
    assert [span.name for span in phases if span.status.code == ERROR] == ["first_byte"]
    assert attributes(root)["trio_gateway.outcome"] == "aborted"
    assert root.status.code == ERROR


@pytest.mark.parametrize("how", ["left", "failed"])
async def test_a_stream_that_broke_off_is_marked(traced, collector, how):
    """By whichever end: the client's in the middle of it, or the backend's."""
    async with traced() as world:
        if how == "left":
            world.sim.play(Script(flood=True, token_gap=0.01))
            async with calling(world, NATIVE) as caller:
                await caller.until(b'"done":false')
                await caller.until(b'"done":false')
                caller.reset()
                await world.sim.until(lambda sim: not sim.open)
        else:
            world.sim.play(Script(tokens=5, ending="die", after=2))
            await world.post("/v1/chat/completions", CHAT | {"stream": True})
        await world.settled()
    (root,) = collector.roots()
    phases = children(collector, root)
    assert [span.name for span in phases] == NAMES
    assert [span.name for span in phases if span.status.code == ERROR] == ["stream"]
    assert root.status.code == ERROR


async def test_a_refusal_says_where_it_happened(traced, collector):
    """A body that is refused, a model that is not there: the phase, the code and the request."""
    async with traced() as world:
        answers = [
            await world.post("/v1/chat/completions", CHAT | {"temperature": "canary-value"}),
            await world.post("/v1/chat/completions", CHAT | {"model": "canary-model"}),
        ]
    ids = {answer.headers["x-request-id"] for answer in answers}
    bad_body, no_model = sorted(collector.roots(), key=lambda span: span.start_time_unix_nano)
    for root, broken, code, status in (
        (bad_body, "parse", "invalid_request", 400),
        (no_model, "admit", "model_not_found", 403),
    ):
        assert children(collector, root)[-1].name == broken
        found = attributes(root)
        assert (found["error.type"], found["http.response.status_code"]) == (code, status)
        assert found["trio_gateway.request_id"] in ids
        assert "gen_ai.request.model" not in found
        assert root.name == "chat"


async def test_whoever_proves_no_key_makes_no_span(traced, collector):
    """Otherwise anybody could fill the collector."""
    async with traced() as world:
        await world.client.post("/v1/chat/completions", json=CHAT)
        await world.client.post(
            "/v1/chat/completions", json=CHAT, headers={"authorization": "Bearer sk-tg-canary"}
        )
        await world.client.get("/nowhere")
        await world.get("/v1/models")
    assert collector.spans == []


async def test_lines_of_batches_are_traced_as_calls(traced, collector):
    """Each line is a trace of its own, with every phase."""
    async with traced() as world:
        batcher = Batcher(world.client, world.key)
        batch_id = await batcher.begin(asks(3))
        with trio.fail_after(PATIENCE):
            while (await batcher.show(batch_id))["status"] != "completed":  # noqa: ASYNC110
                await trio.sleep(0.05)
    roots = collector.roots()
    assert len({root.trace_id for root in roots}) == 3
    for root in roots:
        assert sorted(span.name for span in children(collector, root)) == sorted(NAMES)
        assert attributes(root)["trio_gateway.batch"] is True
        assert root.kind == CONSUMER


async def test_spans_hold_nothing_of_a_caller(traced, collector):
    """No prompt, no answer, no header, no key and no tenant in a single byte that is sent."""
    async with traced() as world:
        key = await world.tenant_with_key("canary-tenant", key={"name": "canary-key"})
        headers = {"user-agent": "canary-agent", "tracestate": "canary=1", "baggage": "canary=1"}
        for model in ("llama3.2", "canary-model"):
            await world.post("/v1/chat/completions", CHAT | {"model": model}, key, headers=headers)
        answer = await world.post("/api/chat", CHAT | {"stream": False}, key=key, headers=headers)
        said = answer.json()["message"]["content"]
        assert "canary-prompt" in said
    sent = b"".join(collector.bodies)
    assert b"llama3.2" in sent
    secret = key["key"].removeprefix("sk-tg-")
    for word in ("canary", secret, key["id"], key["public_id"], "ten_", key["tenant_id"]):
        assert word.encode() not in sent


async def test_a_collector_that_is_away_hinders_nobody(monkeypatch, database, redis_url):
    """Calls are answered, and the gateway leaves within the limit, its spans lost."""
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "600")  # seconds for which it would try
    async with open_world(database, redis_url) as world:
        for _ in range(3):
            assert (await world.post("/v1/chat/completions", CHAT)).status_code == 200
        await world.settled()
        began = time.monotonic()
    assert time.monotonic() - began < PATIENCE


@pytest.mark.parametrize(
    "environ",
    [{}, {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9", "OTEL_SDK_DISABLED": "true"}],
)
def test_nothing_of_opentelemetry_is_loaded_while_traces_are_off(environ):
    """Neither by the application nor by opening what observes calls.

    But for what the Redis client loads by itself where it finds it.
    """
    code = """
import sys, redis.asyncio
earlier = set(sys.modules)
import trio, trio_gateway.asgi, trio_gateway.admin_asgi
from trio_gateway.pipeline.observing import open_observer
async def main():
    async with open_observer(()) as observer:
        assert observer.tracing is None
trio.run(main)
print([name for name in set(sys.modules) - earlier if name.startswith("opentelemetry")])
"""
    done = subprocess.run(
        [sys.executable, "-c", code], env=environ, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


async def test_an_obstacle_is_said_and_serving_goes_on(monkeypatch, database, redis_url, capsys):
    """One clear line in the log, at the start."""
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc")
    async with open_world(database, redis_url) as world:
        assert world.gateway.observer.tracing is None
        assert (await world.post("/v1/chat/completions", CHAT)).status_code == 200
    assert "OTEL_EXPORTER_OTLP_PROTOCOL: only http/protobuf" in capsys.readouterr().err
