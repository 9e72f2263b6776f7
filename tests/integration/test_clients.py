"""The official OpenAI and Ollama clients, unchanged but for address and key."""

from __future__ import annotations

import asyncio
import base64
import json
import math
import struct
import zlib
from dataclasses import dataclass
from typing import Any

import ollama
import openai
import pytest
import trio
from pydantic import BaseModel

from tests import stores as test_stores
from tests.integration import fleet as fleets
from tests.integration.calls import office

WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Tell the weather.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}},
            "required": ["city"],
        },
    },
}
CLOCK = {"type": "function", "function": {"name": "get_time", "description": "Tell the time."}}
HELLO = [{"role": "user", "content": "hello there"}]


def _chunk(kind: bytes, content: bytes) -> bytes:
    check = struct.pack(">I", zlib.crc32(kind + content))
    return struct.pack(">I", len(content)) + kind + content + check


PIXEL = (
    b"\x89PNG\r\n\x1a\n"
    + _chunk(b"IHDR", struct.pack(">IIBBBBB", 1, 1, 8, 0, 0, 0, 0))
    + _chunk(b"IDAT", zlib.compress(b"\0\0"))
    + _chunk(b"IEND", b"")
)


@dataclass(frozen=True)
class Site:
    """Where to connect, the simulated Ollama, and keys by name."""

    base_url: str
    sim: fleets.Ollama
    keys: dict[str, Any]


@pytest.fixture(scope="module")
def site(stores, tmp_path_factory):
    """A fleet, and keys of tenants with different rights."""
    folder = tmp_path_factory.mktemp("clients")
    redis_url = test_stores.fresh_redis(stores)
    with (
        fleets.ollama(folder) as sim,
        test_stores.fresh_database(stores) as database,
        fleets.fleet("serve", folder, (database, redis_url), sim.url) as running,
    ):
        yield Site(running.base_url, sim, trio.run(_keys, database))


async def _keys(database):
    async with office(database) as desk:
        few = {"all_models": False, "models": ["llama3.2:latest"]}
        return {
            "open": await desk.key("open"),
            "few": await desk.key("few", **few),
            "broke": await desk.key("broke", budget=0, budget_period="total"),
            "slow": await desk.key("slow", requests_per_minute=1),
        }


@pytest.fixture
def sdk(site):
    """Make OpenAI clients; `attempts` counts what each sent."""
    opened = []

    def make(name="open", key=None, **options):
        attempts: list[Any] = []
        http = openai.DefaultHttpxClient(event_hooks={"request": [attempts.append]})
        client = openai.OpenAI(
            base_url=f"{site.base_url}/v1",
            api_key=key or site.keys[name]["key"],
            http_client=http,
            **options,
        )
        client.attempts = attempts  # type: ignore[attr-defined]
        opened.append(client)
        return client

    yield make
    for client in opened:
        client.close()


@pytest.fixture
def native(site):
    """Make Ollama clients."""
    opened = []

    def make(name="open"):
        client = ollama.Client(
            host=site.base_url, headers={"Authorization": f"Bearer {site.keys[name]['key']}"}
        )
        opened.append(client)
        return client

    yield make
    for client in opened:
        client._client.close()


@pytest.fixture
def sim(site):
    """The simulated Ollama, which afterwards behaves again, whatever became of the test."""
    yield site.sim
    trio.run(site.sim.forget)


def generations(site):
    """Return what upstream has been asked, oldest first."""
    return trio.run(site.sim.state)["generations"]


# OpenAI


def test_openai_completes_a_chat(sdk):
    """A typed completion with usage, an id of its own and a real finish reason."""
    client = sdk()
    answer = client.chat.completions.create(model="llama3.2", messages=HELLO)
    (choice,) = answer.choices
    assert (choice.message.role, choice.message.content) == ("assistant", "Echo: hello there")
    assert (choice.finish_reason, answer.model) == ("stop", "llama3.2")
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + 3
    again = client.chat.completions.create(model="llama3.2", messages=HELLO)
    assert again.id != answer.id
    assert again._request_id != answer._request_id


def test_openai_async_client_works_with_parallel_calls(site):
    """Ten calls on one asyncio client, each with its own answer."""

    async def main():
        key = site.keys["open"]["key"]
        async with openai.AsyncOpenAI(base_url=f"{site.base_url}/v1", api_key=key) as client:

            async def one(number):
                stream = await client.chat.completions.create(
                    model="llama3.2",
                    messages=[{"role": "user", "content": f"number {number}"}],
                    stream=True,
                )
                return "".join([chunk.choices[0].delta.content or "" async for chunk in stream])

            return await asyncio.gather(*map(one, range(10)))

    assert asyncio.run(main()) == [f"Echo: number {number}" for number in range(10)]


@pytest.mark.parametrize("include_usage", [False, True])
def test_openai_streams_with_and_without_usage(sdk, include_usage):
    """Usage comes once, last, with no choices, and only when it was asked for."""
    options = {"stream_options": {"include_usage": True}} if include_usage else {}
    chunks = list(
        sdk().chat.completions.create(model="llama3.2", messages=HELLO, stream=True, **options)
    )
    said = [chunk for chunk in chunks if chunk.choices]
    assert said[0].choices[0].delta.role == "assistant"
    assert "".join(c.choices[0].delta.content or "" for c in said) == "Echo: hello there"
    assert [c.choices[0].finish_reason for c in said if c.choices[0].finish_reason] == ["stop"]
    assert len({chunk.id for chunk in chunks}) == 1
    if include_usage:
        assert chunks[-1].choices == []
        assert chunks[-1].usage.completion_tokens == 3
        assert all(chunk.usage is None for chunk in chunks[:-1])
    else:
        assert all(chunk.choices and chunk.usage is None for chunk in chunks)


@pytest.mark.parametrize("script", [{}, {"tools_in": "intermediate", "tool_index": "zero"}])
def test_openai_accumulates_two_streamed_tool_calls(sim, sdk, script):
    """The SDK's own stream helper puts both together, however upstream numbers them."""
    trio.run(sim.play, script)
    with sdk().chat.completions.stream(
        model="llama3.2",
        messages=[{"role": "user", "content": "call get_weather and call get_time"}],
        tools=[WEATHER, CLOCK],
    ) as stream:
        events = [event.type for event in stream]
        (choice,) = stream.get_final_completion().choices
    assert choice.finish_reason == "tool_calls"
    weather, clock = choice.message.tool_calls
    assert (weather.function.name, clock.function.name) == ("get_weather", "get_time")
    assert set(json.loads(weather.function.arguments)) == {"city"}
    assert weather.id
    assert weather.id != clock.id
    assert events.count("tool_calls.function.arguments.done") == 2


def test_openai_takes_a_tool_call_and_returns_its_result(sdk):
    """A whole round: call, result, answer."""
    client = sdk()
    said = [{"role": "user", "content": "call get_weather"}]
    asked = client.chat.completions.create(model="llama3.2", messages=said, tools=[WEATHER])
    message = asked.choices[0].message
    assert (asked.choices[0].finish_reason, message.content) == ("tool_calls", None)
    (call,) = message.tool_calls
    said += [
        message.model_dump(exclude_none=True),
        {"role": "tool", "tool_call_id": call.id, "content": "sunny"},
        {"role": "user", "content": "thanks"},
    ]
    answer = client.chat.completions.create(model="llama3.2", messages=said, tools=[WEATHER])
    assert answer.choices[0].message.content == "Echo: thanks"


class Person(BaseModel):
    name: str
    age: int


def test_openai_parses_an_answer_with_a_schema(sdk):
    """A pydantic model as response_format; the schema itself arrives upstream."""
    parsed = sdk().chat.completions.parse(model="llama3.2", messages=HELLO, response_format=Person)
    assert isinstance(parsed.choices[0].message.parsed, Person)


def test_openai_gives_a_json_object(sdk):
    """`json_object` yields an object."""
    answer = sdk().chat.completions.create(
        model="llama3.2", messages=HELLO, response_format={"type": "json_object"}
    )
    assert json.loads(answer.choices[0].message.content) == {"echo": "hello there"}


@pytest.mark.parametrize("options", [{}, {"encoding_format": "float"}])
def test_openai_embeds_as_floats_and_as_base64(sdk, options):
    """The SDK's default is base64, which it decodes to the same numbers."""
    answer = sdk().embeddings.create(
        model="nomic-embed-text", input=["one", "two words"], **options
    )
    assert [item.index for item in answer.data] == [0, 1]
    for item in answer.data:
        assert len(item.embedding) == 768
        assert math.isclose(sum(x * x for x in item.embedding), 1, abs_tol=1e-4)
    assert (answer.usage.prompt_tokens, answer.usage.total_tokens) == (3, 3)


def test_openai_completes_a_prompt(sdk):
    """The legacy route, whole and streamed."""
    client = sdk()
    whole = client.completions.create(model="llama3.2", prompt="one two")
    assert whole.choices[0].text == "Echo: one two"
    assert whole.choices[0].finish_reason == "stop"
    chunks = list(client.completions.create(model="llama3.2", prompt="one two", stream=True))
    assert "".join(chunk.choices[0].text for chunk in chunks) == "Echo: one two"


def test_openai_lists_and_retrieves_the_models_allowed(sdk):
    """Only what the key may use; a name with a slash is found too."""
    assert [model.id for model in sdk("few").models.list()] == ["llama3.2:latest"]
    client = sdk()
    assert {model.id for model in client.models.list()} == set(fleets.MODELS)
    assert client.models.retrieve("team/secret-model:7b").id == "team/secret-model:7b"
    assert client.models.retrieve("llama3.2").object == "model"
    for name in ("team/secret-model:7b", "no-such-model"):
        with pytest.raises(openai.PermissionDeniedError) as refused:
            sdk("few").models.retrieve(name)
        assert refused.value.code == "model_not_found"


def test_openai_raises_authentication_error(sdk):
    """No such key: 401, not tried again."""
    client = sdk(key="sk-tg-wrong")
    with pytest.raises(openai.AuthenticationError) as refused:
        client.chat.completions.create(model="llama3.2", messages=HELLO)
    assert refused.value.code == "invalid_api_key"
    assert len(client.attempts) == 1


def test_openai_raises_permission_denied_for_models_and_endpoints(sdk):
    """403 for a model outside the list, and for a route that is not offered."""
    with pytest.raises(openai.PermissionDeniedError) as refused:
        sdk("few").chat.completions.create(model="qwen3:8b", messages=HELLO)
    assert refused.value.code == "model_not_found"
    with pytest.raises(openai.PermissionDeniedError) as refused:
        sdk().images.generate(prompt="a cat", model="llama3.2")
    assert refused.value.code == "endpoint_not_allowed"
    assert refused.value.request_id


def test_openai_raises_bad_request_with_the_parameter(sdk):
    """What cannot be honored is named, never ignored."""
    with pytest.raises(openai.BadRequestError) as refused:
        sdk().chat.completions.create(model="llama3.2", messages=HELLO, n=2)
    assert (refused.value.param, refused.value.type) == ("n", "invalid_request_error")
    with pytest.raises(openai.BadRequestError) as refused:
        sdk().chat.completions.create(model="llama3.2", messages=[])
    assert refused.value.param == "messages"


def test_openai_raises_rate_limit_once_when_the_budget_is_gone(sdk):
    """`x-should-retry: false` saves the SDK's retries."""
    client = sdk("broke", max_retries=3)
    with pytest.raises(openai.RateLimitError) as refused:
        client.chat.completions.create(model="llama3.2", messages=HELLO)
    assert refused.value.code == "insufficient_quota"
    assert len(client.attempts) == 1


def test_openai_raises_rate_limit_with_headers_when_calls_come_too_fast(sdk):
    """The second call in a minute is refused, and told when to come again."""
    client = sdk("slow", max_retries=0)
    raw = client.chat.completions.with_raw_response.create(model="llama3.2", messages=HELLO)
    assert raw.headers["x-ratelimit-limit-requests"] == "1"
    assert raw.headers["x-ratelimit-remaining-requests"] == "0"
    with pytest.raises(openai.RateLimitError) as refused:
        client.chat.completions.create(model="llama3.2", messages=HELLO)
    assert refused.value.code == "rate_limit_exceeded"
    assert 0 < int(refused.value.response.headers["retry-after"]) <= 60


def test_openai_raises_an_api_error_when_a_stream_breaks(sim, sdk):
    """Upstream dies mid-stream: the SDK's iterator raises, it does not just end."""
    trio.run(sim.play, {"tokens": 10, "token_gap": 0.01, "ending": "die", "after": 4})
    with pytest.raises(openai.APIError):
        list(sdk().chat.completions.create(model="llama3.2", messages=HELLO, stream=True))


def test_openai_sends_an_image_as_a_data_url(site, sdk):
    """The picture arrives upstream as plain base64 beside one text."""
    encoded = base64.b64encode(PIXEL).decode()
    content = [
        {"type": "text", "text": "what is this"},
        {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{encoded}"}},
    ]
    answer = sdk().chat.completions.create(
        model="llava:7b", messages=[{"role": "user", "content": content}]
    )
    assert answer.choices[0].message.content == "Echo: what is this"
    (message,) = generations(site)[-1]["body"]["messages"]
    assert (message["content"], message["images"]) == ("what is this", [encoded])


def test_openai_reasons_where_the_model_can(sdk):
    """`reasoning_effort` brings `reasoning` apart from the content, streamed and whole."""
    client = sdk()
    asked = {"model": "qwen3:8b", "messages": HELLO, "reasoning_effort": "low"}
    message = client.chat.completions.create(**asked).choices[0].message
    assert (message.reasoning, message.content) == ("Let me think. ", "Echo: hello there")
    deltas = [c.choices[0].delta for c in client.chat.completions.create(**asked, stream=True)]
    assert "".join(getattr(delta, "reasoning", None) or "" for delta in deltas) == "Let me think. "
    assert "".join(delta.content or "" for delta in deltas) == "Echo: hello there"
    plain = client.chat.completions.create(**asked | {"model": "llama3.2"})
    assert plain.choices[0].message.content == "Echo: hello there"


# Ollama


def test_ollama_lists_shows_and_ps_only_what_is_allowed(native):
    """`ollama list` and its like see the key's models; show tells no system prompt."""
    native().generate(model="qwen3:8b", prompt="hello")
    client = native("few")
    assert [model.model for model in client.list().models] == ["llama3.2:latest"]
    shown = client.show("llama3.2")
    assert "tools" in shown.capabilities
    assert not shown.template
    assert not shown.modelfile
    assert not shown.license
    client.chat(model="llama3.2", messages=HELLO)
    assert [model.model for model in client.ps().models] == ["llama3.2:latest"]
    with pytest.raises(ollama.ResponseError) as refused:
        client.show("qwen3:8b")
    assert refused.value.status_code == 403
    assert len(native().list().models) == len(fleets.MODELS)


def test_ollama_chats_whole_and_streamed(native):
    """Typed answers with counts; the stream ends with `done`."""
    client = native()
    answer = client.chat(model="llama3.2", messages=HELLO)
    assert answer.message.content == "Echo: hello there"
    assert (answer.done, answer.done_reason, answer.eval_count) == (True, "stop", 3)
    parts = list(client.chat(model="llama3.2", messages=HELLO, stream=True))
    assert "".join(part.message.content for part in parts) == "Echo: hello there"
    assert [part.done for part in parts].count(True) == 1
    assert parts[-1].done


def test_ollama_calls_tools_thinks_and_sees(native):
    """Tools given as a function, thinking apart, an image as bytes."""

    def get_weather(city: str) -> str:
        """Tell the weather.

        Args:
            city: where
        """
        return city

    client = native()
    said = [{"role": "user", "content": "call get_weather"}]
    message = client.chat(model="llama3.2", messages=said, tools=[get_weather]).message
    (call,) = message.tool_calls
    assert call.function.name == "get_weather"
    assert set(call.function.arguments) == {"city"}
    said += [message, {"role": "tool", "tool_name": "get_weather", "content": "sunny"}, *HELLO]
    assert client.chat(model="llama3.2", messages=said).message.content == "Echo: hello there"
    thought = client.chat(model="qwen3:8b", messages=HELLO, think=True).message
    assert (thought.thinking, thought.content) == ("Let me think. ", "Echo: hello there")
    seen = client.chat(model="llava:7b", messages=[HELLO[0] | {"images": [PIXEL]}])
    assert seen.message.content == "Echo: hello there"


def test_ollama_generates_whole_and_streamed(native):
    """The prompt route, with a schema too."""
    client = native()
    assert client.generate(model="llama3.2", prompt="one two").response == "Echo: one two"
    parts = list(client.generate(model="llama3.2", prompt="one two", stream=True))
    assert "".join(part.response for part in parts) == "Echo: one two"
    shaped = client.generate(model="llama3.2", prompt="who", format=Person.model_json_schema())
    assert Person.model_validate_json(shaped.response).name


def test_ollama_embeds_both_ways(native):
    """The present route and the old one."""
    client = native()
    answer = client.embed(model="nomic-embed-text", input=["one", "two words"])
    assert (len(answer.embeddings), answer.prompt_eval_count) == (2, 3)
    assert len(client.embeddings(model="nomic-embed-text", prompt="one").embedding) == 768


def test_ollama_may_not_change_what_is_installed(site, native):
    """Pull, create, copy, push and delete are refused with 403 and reach nothing."""
    client = native()
    before = trio.run(site.sim.state)["management"]
    for act in (
        lambda: client.pull("llama3.2"),
        lambda: client.create(model="mine", from_="llama3.2"),
        lambda: client.copy("llama3.2", "mine"),
        lambda: client.push("mine"),
        lambda: client.delete("llama3.2"),
    ):
        with pytest.raises(ollama.ResponseError) as refused:
            act()
        assert refused.value.status_code == 403
    assert trio.run(site.sim.state)["management"] == before == []


def test_ollama_async_client_streams(site):
    """The asyncio client too."""

    async def main():
        headers = {"Authorization": f"Bearer {site.keys['open']['key']}"}
        client = ollama.AsyncClient(host=site.base_url, headers=headers)
        try:
            parts = await client.chat(model="llama3.2", messages=HELLO, stream=True)
            return "".join([part.message.content or "" async for part in parts])
        finally:
            await client._client.aclose()

    assert asyncio.run(main()) == "Echo: hello there"
