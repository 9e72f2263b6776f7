"""Every way a call can end by itself, told by the answer, the ledger, the hold and the GPU."""

from __future__ import annotations

from typing import Any

import httpx
import ollama
import orjson
import pytest
import trio

from tests.integration.caller import (
    NATIVE,
    OPENAI,
    SHAPES,
    SOON,
    WHOLE,
    calling,
    dispatched,
    ended,
    error_of,
    events,
    idle,
    lines,
    until,
    until_rows,
)
from tests.world import open_world
from trio_gateway.clients.transport import LeanTransport
from trio_gateway.core import errors
from trio_gateway.services.quota.keys import tenant_keys
from trio_gateway.simulator.script import Script

ESTIMATE = 8  # of "one two three": ceil(13 / 4) + 4

each_shape = pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)


def text_of(code):
    """What a native caller reads for an error code."""
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type)]
    return {
        kind.default_code: kind.default_message
        for kind in kinds
        if issubclass(kind, errors.GatewayError)
    }[code]


def assert_told(shape, answer, status, code):
    """A stream that began says it last, in a 200; an answer that did not has the status."""
    began = shape.stream and answer.status_code == 200
    assert answer.status_code == (200 if began else status)
    if shape is NATIVE:
        said = error_of(shape, answer.content)
        assert said == text_of(code) or said.startswith("The model server sent ")
    elif began:
        assert error_of(shape, answer.content) == code
    else:
        assert orjson.loads(answer.content)["error"]["code"] == code


@each_shape
async def test_a_completed_call_is_charged_by_upstreams_counts(world, shape):
    """Outcome completed, basis final, the counts of the final object, and nothing left behind."""
    answer = await world.post(shape.path, shape.body())
    row = await ended(world)
    (generation,) = world.sim.generations
    assert answer.status_code == row["status_code"] == 200
    assert (row["outcome"], row["basis"]) == ("completed", "final")
    assert row["request_id"] == answer.headers["x-request-id"]
    assert (generation.end, row["completion_tokens"]) == ("done", generation.tokens)
    assert row["charged_tokens"] == row["prompt_tokens"] + row["completion_tokens"]
    assert row["backend"] == world.gateway.gate.backends.urls[0]
    assert row["duration_ms"] >= row["ttft_ms"] > 0


@each_shape
async def test_the_account_is_closed_within_a_second_of_the_last_byte(world, shape):
    """The row is visible and the hold gone one second after the answer's last byte."""
    await world.post(shape.path, shape.body())
    holds = tenant_keys(world.tenant["id"])[2]
    await until_rows(world, "SELECT FROM gateway.ledger", limit=SOON)
    with trio.fail_after(SOON):
        while await world.gateway.redis.command("HLEN", holds):  # noqa: ASYNC110 - no event
            await trio.sleep(0.002)


async def test_a_connection_to_upstream_is_used_again_after_a_whole_answer(world):
    """Calls that ran to their end leave the connection usable: one is enough for ten calls."""
    for _ in range(10):
        await world.post(NATIVE.path, NATIVE.body())
    await idle(world)
    assert {row["outcome"] for row in await world.ledger()} == {"completed"}
    assert world.sim.started == 10


@each_shape
async def test_a_full_queue_refuses_with_retry_after(database, redis_url, shape):
    """No slot and no place in line: 503 overloaded, a row that costs nothing."""
    async with open_world(database, redis_url, backend_slots=1, queue_limit=0) as world:
        world.sim.play(Script(token_gap=60, times=1))
        async with calling(world, NATIVE) as first:
            await first.until(b"Echo")
            answer = await world.post(shape.path, shape.body())
        await idle(world)
        (row,) = [row for row in await world.ledger() if row["outcome"] != "aborted"]
    assert_told(shape, answer, 503, "overloaded")
    assert int(answer.headers["retry-after"]) >= 1
    assert (row["outcome"], row["basis"], row["status_code"]) == ("refused", "none", 503)
    assert (row["charged_tokens"], row["prompt_tokens"], row["backend"]) == (0, 0, None)
    assert world.sim.started == 1


async def test_waiting_too_long_in_line_refuses(database, redis_url):
    """After QUEUE_TIMEOUT the call gets 503 and never reached upstream."""
    async with open_world(database, redis_url, backend_slots=1, queue_timeout=0.1) as world:
        world.sim.play(Script(token_gap=60, times=1))
        async with calling(world, NATIVE) as first:
            await first.until(b"Echo")
            answer = await world.post(OPENAI.path, OPENAI.body())
        await idle(world)
        (row,) = [row for row in await world.ledger() if row["outcome"] != "aborted"]
    assert_told(OPENAI, answer, 503, "overloaded")
    assert "retry-after" in answer.headers
    assert (row["outcome"], row["basis"], row["charged_tokens"]) == ("refused", "none", 0)
    assert world.sim.started == 1


REFUSALS = {
    # upstream's status: ours, our code, the row's basis, tokens charged
    500: (502, "upstream_error", "estimated", ESTIMATE),
    503: (503, "upstream_unavailable", "none", 0),
    429: (503, "upstream_unavailable", "none", 0),
    404: (403, "model_not_found", "none", 0),
    400: (400, "invalid_request", "none", 0),
    302: (502, "upstream_error", "estimated", ESTIMATE),
}


@each_shape
@pytest.mark.parametrize("status", REFUSALS)
async def test_upstreams_refusal_keeps_a_real_status(world, shape, status):
    """Its status becomes ours, in our own words, for streams too; nothing is retried."""
    ours, code, basis, charged = REFUSALS[status]
    world.sim.play(Script(status=status, error_text="secret words"))
    answer = await world.post(shape.path, shape.body())
    row = await ended(world)
    assert answer.status_code == row["status_code"] == ours
    assert b"secret" not in answer.content
    if shape is not NATIVE:
        assert answer.json()["error"]["code"] == code
    assert ("retry-after" in answer.headers) is (ours == 503)
    assert (row["outcome"], row["basis"]) == ("upstream_error", basis)
    assert row["charged_tokens"] == charged
    assert (world.sim.started, dict(world.sim.requests).get("/api/pull")) == (1, None)


BREAKS = {
    "breaks at once": Script(tokens=9, ending="garbage", after=3),
    "dies": Script(tokens=9, ending="die", after=3, token_gap=0.002),
    "ends without done": Script(tokens=9, ending="eof", after=3, token_gap=0.002),
    "says error": Script(tokens=9, ending="error", after=3, error_text="secret", token_gap=0.002),
    "turns to garbage": Script(tokens=9, ending="garbage", after=3, token_gap=0.002),
}


@each_shape
@pytest.mark.parametrize("script", BREAKS.values(), ids=BREAKS)
async def test_an_upstream_that_breaks_midway_never_looks_like_a_clean_end(world, shape, script):
    """Streams end in the dialect's error, other answers are 502; the chunks seen are charged."""
    world.sim.play(script)
    answer = await world.post(shape.path, shape.body())
    row = await ended(world)
    assert_told(shape, answer, 502, "upstream_error")
    assert b"secret" not in answer.content
    assert (row["outcome"], row["basis"]) == ("upstream_error", "partial")
    assert (row["prompt_tokens"], row["completion_tokens"]) == (ESTIMATE, 3)
    assert row["status_code"] == (200 if shape.stream else 502)
    assert row["charged_tokens"] == ESTIMATE + 3


@pytest.mark.parametrize("ending", ["die", "eof", "error", "garbage"])
async def test_an_upstream_that_breaks_before_a_token_is_a_502(world, ending):
    """Without one good line the stream has not begun, and the status is real."""
    world.sim.play(Script(ending=ending, after=0))
    answer = await world.post(OPENAI.path, OPENAI.body())
    row = await ended(world)
    assert (answer.status_code, answer.json()["error"]["code"]) == (502, "upstream_error")
    assert (row["outcome"], row["basis"]) == ("upstream_error", "estimated")
    assert (row["status_code"], row["charged_tokens"]) == (502, ESTIMATE)


async def test_a_line_without_end_is_refused(world):
    """One line above the limit breaks the call instead of filling the memory."""
    world.sim.play(Script(line_bytes=9 * 1024 * 1024))
    answer = await world.post(OPENAI.path, OPENAI.body())
    row = await ended(world)
    assert answer.status_code == 502
    assert (row["outcome"], world.sim.generations[0].end) == ("upstream_error", "disconnected")


@each_shape
@pytest.mark.parametrize("script", [Script(never_answers=True), Script(never_reads=True)])
async def test_an_upstream_that_never_answers_is_a_504(database, redis_url, shape, script):
    """FIRST_BYTE_TIMEOUT ends the wait with a real status, and upstream is let go."""
    async with open_world(database, redis_url, first_byte_timeout=0.2) as world:
        world.sim.play(script)
        answer = await world.post(shape.path, shape.body())
        row = await ended(world)
    assert answer.status_code == row["status_code"] == 504
    assert_told(shape, answer, 504, "upstream_timeout")
    assert (row["outcome"], row["basis"]) == ("timeout", "estimated")
    assert row["charged_tokens"] == ESTIMATE


@each_shape
@pytest.mark.parametrize("limit", ["idle_timeout", "call_timeout"])
async def test_an_upstream_that_falls_silent_is_let_go(database, redis_url, shape, limit):
    """IDLE_TIMEOUT and CALL_TIMEOUT end a call midway: the error comes last, chunks are charged."""
    limits: Any = {limit: 1.5}
    async with open_world(database, redis_url, **limits) as world:
        world.sim.play(Script(tokens=9, token_gap=60))
        answer = await world.post(shape.path, shape.body())
        row = await ended(world)
    assert_told(shape, answer, 504, "upstream_timeout")
    assert (row["outcome"], row["basis"]) == ("timeout", "partial")
    assert (row["completion_tokens"], row["status_code"]) == (1, 200 if shape.stream else 504)
    assert world.sim.generations[0].end == "disconnected"


async def test_the_call_timeout_counts_while_the_model_loads(database, redis_url):
    """CALL_TIMEOUT before the first byte is a 504 with a row of its own."""
    async with open_world(database, redis_url, call_timeout=1) as world:
        world.sim.play(Script(head_delay=60))
        answer = await world.post(OPENAI.path, OPENAI.body())
        row = await ended(world)
    assert (answer.status_code, answer.json()["error"]["code"]) == (504, "upstream_timeout")
    assert (row["outcome"], row["basis"], row["status_code"]) == ("timeout", "estimated", 504)


@each_shape
async def test_an_output_without_end_is_cut_at_the_ceiling(world, shape):
    """Upstream ignores num_predict: the gateway cuts, says `length`, charges the ceiling."""
    world.sim.play(Script(flood=True))
    limit = {"options": {"num_predict": 20}} if shape is NATIVE else {"max_tokens": 20}
    answer = await world.post(shape.path, shape.body(**limit))
    row = await ended(world)
    assert answer.status_code == row["status_code"] == 200
    assert (row["outcome"], row["basis"], row["completion_tokens"]) == ("cut", "partial", 20)
    assert world.sim.generations[0].body["options"]["num_predict"] == 20
    assert world.sim.generations[0].end == "disconnected"
    if shape is NATIVE:
        last = lines(answer.content)[-1]
        said = [line["message"]["content"] for line in lines(answer.content)]
        assert (last["done"], last["done_reason"], last["eval_count"]) == (True, "length", 20)
        assert "".join(said).count("flood") == 20
    elif shape is OPENAI:
        assert events(answer.content)[-1] == "[DONE]"
        assert events(answer.content)[-2]["choices"][0]["finish_reason"] == "length"
    else:
        assert answer.json()["choices"][0]["finish_reason"] == "length"
        assert answer.json()["usage"]["completion_tokens"] == 20


LIES = {
    "negative output": {"eval_count": -5},
    "negative prompt": {"prompt_eval_count": -1},
    "huge output": {"eval_count": 10**9},
    "huge prompt": {"prompt_eval_count": 10**9},
    "beyond 63 bits": {"eval_count": 2**64 - 1},
    "float": {"eval_count": 2.5},
    "text": {"eval_count": "12"},
    "bool": {"eval_count": True},
}


@pytest.mark.parametrize("lie", LIES.values(), ids=LIES)
async def test_counts_that_cannot_be_true_are_not_charged(world, lie):
    """The estimate and the chunks are charged instead, and the answer still completes."""
    world.sim.play(Script(tokens=5, final=lie, token_gap=0.001))
    answer = await world.post(NATIVE.path, NATIVE.body())
    row = await ended(world)
    assert answer.status_code == 200
    assert (row["outcome"], row["basis"]) == ("completed", "partial")
    assert (row["prompt_tokens"], row["completion_tokens"]) == (ESTIMATE, 5)
    assert row["charged_tokens"] == ESTIMATE + 5


@pytest.mark.parametrize("lie", LIES.values(), ids=LIES)
async def test_the_caller_is_told_the_counts_that_are_charged(world, lie):
    """The usage in an answer is the ledger's, not what upstream made up."""
    world.sim.play(Script(tokens=5, final=lie))
    answer = await world.post(WHOLE.path, WHOLE.body())
    row = await ended(world)
    usage = answer.json()["usage"]
    told = (usage["prompt_tokens"], usage["completion_tokens"])
    assert told == (row["prompt_tokens"], row["completion_tokens"])


async def test_absent_counts_are_zero(world):
    """Ollama leaves out what it served from its cache: absent is zero, and final."""
    world.sim.play(Script(tokens=5, final={"prompt_eval_count": None}))
    await world.post(NATIVE.path, NATIVE.body())
    row = await ended(world)
    assert (row["outcome"], row["basis"], row["prompt_tokens"]) == ("completed", "final", 0)
    assert row["charged_tokens"] == row["completion_tokens"] == 5


@each_shape
async def test_several_tokens_in_a_chunk_are_charged_by_the_final_count(world, shape):
    """Chunks are no tokens: upstream's own count is what is charged."""
    world.sim.play(Script(tokens=12, chunk_tokens=4))
    await world.post(shape.path, shape.body())
    row = await ended(world)
    assert (row["basis"], row["completion_tokens"]) == ("final", 12)


async def test_a_busy_upstreams_own_retry_after_is_passed_on(world):
    """How long to wait is the one word of upstream's that travels, and the call costs nothing."""
    world.sim.play(Script(status=503, headers={"retry-after": "7"}))
    answer = await world.post(WHOLE.path, WHOLE.body())
    row = await ended(world)
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "7")
    assert (row["outcome"], row["basis"], row["charged_tokens"]) == ("upstream_error", "none", 0)


class Unreachable(LeanTransport):
    """Finds the way to /api/tags, and no further."""

    async def handle_async_request(self, request):
        """Refuse what is not a look at the models."""
        if request.url.path == "/api/tags":
            return await super().handle_async_request(request)
        raise httpx.ConnectError("refused")


@each_shape
async def test_an_unreachable_upstream_costs_nothing(database, redis_url, shape):
    """A refused connection is 503 with Retry-After, outcome upstream_error, basis none."""
    async with open_world(database, redis_url, transport=Unreachable()) as world:
        answer = await world.post(shape.path, shape.body())
        row = await ended(world)
    assert_told(shape, answer, 503, "upstream_unavailable")
    assert "retry-after" in answer.headers
    assert (row["outcome"], row["basis"], row["status_code"]) == ("upstream_error", "none", 503)
    assert row["charged_tokens"] == 0


async def test_ollamas_own_client_raises_on_the_error_line(world):
    """The `ollama` package sees a stream that breaks as its ResponseError."""
    world.sim.play(Script(tokens=9, ending="die", after=3, token_gap=0.002))

    def chat():
        client = ollama.Client(host=world.base_url, headers=world.auth())
        said: list[Any] = []
        try:
            for part in client.chat("llama3.2", [{"role": "user", "content": "x"}], stream=True):
                said.append(part.message.content)
        except ollama.ResponseError as error:
            return "".join(said), error.error
        return "".join(said), None

    said, error = await trio.to_thread.run_sync(chat)
    assert (said, error) == ("t0 t1 t2 ", text_of("upstream_error"))
    assert (await ended(world))["outcome"] == "upstream_error"


async def test_embeddings_that_break_are_a_502(world):
    """A call without output is held, relayed and settled in the same way."""
    world.sim.play(Script(path="/api/embed", ending="die"))
    body = {"model": "nomic-embed-text", "input": "one two three"}
    answer = await world.post("/api/embed", body)
    row = await ended(world)
    assert answer.status_code == row["status_code"] == 502
    assert (row["outcome"], row["completion_tokens"]) == ("upstream_error", 0)


async def test_a_waiting_openai_stream_is_kept_alive(database, redis_url):
    """With SSE_KEEPALIVE comments come while the model loads, then the answer as ever."""
    async with open_world(database, redis_url, sse_keepalive=0.02) as world:
        world.sim.play(Script(head_delay=0.6))
        answer = await world.post(OPENAI.path, OPENAI.body())
        row = await ended(world)
    assert answer.content.startswith(b": ")
    assert answer.content.count(b": waiting\n\n") > 1
    assert events(answer.content)[-1] == "[DONE]"
    assert row["outcome"] == "completed"


async def test_a_stream_kept_alive_ends_in_an_error_event(database, redis_url):
    """An error after the early head is an event inside the 200, and never `[DONE]`."""
    async with open_world(database, redis_url, sse_keepalive=0.02) as world:
        world.sim.play(Script(head_delay=0.6, status=500))
        answer = await world.post(OPENAI.path, OPENAI.body())
        row = await ended(world)
        native = await world.post(NATIVE.path, NATIVE.body())
    assert (answer.status_code, error_of(OPENAI, answer.content)) == (200, "upstream_error")
    assert (row["outcome"], row["status_code"]) == ("upstream_error", 502)
    assert native.status_code == 502, "native streams have no comments: they keep the status"


async def test_a_stream_kept_alive_ends_with_its_client(database, redis_url):
    """A hang-up among the comments closes upstream and settles."""
    async with open_world(database, redis_url, sse_keepalive=0.02) as world:
        world.sim.play(Script(head_delay=60))
        async with calling(world, OPENAI) as caller:
            await caller.until(b": waiting")
            await dispatched(world)
            await caller.leave()
            await until(lambda: not world.sim.open, SOON)
            row = await ended(world)
    assert (row["outcome"], row["basis"]) == ("aborted", "estimated")
