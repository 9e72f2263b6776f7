"""The simulated Ollama's own chunks, as a caller of the OpenAI API sees them."""

from __future__ import annotations

from typing import Any

import httpx
import orjson
import pytest
import trio

from tests.integration.mock_ollama import create_mock_ollama, ollama_chunks_to_openai_sse

ASK = {"model": "a", "messages": [{"role": "user", "content": "one two"}]}


async def native_chunks():
    """Ask the simulated Ollama for a reply."""
    app: Any = create_mock_ollama(["a"])
    transport = httpx.ASGITransport(app=app)
    async with httpx.AsyncClient(transport=transport, base_url="http://ollama") as client:
        with trio.fail_after(5):
            answer = await client.post("/api/chat", json=ASK)
    return [orjson.loads(line) for line in answer.content.splitlines()]


async def test_chunks_become_events_that_end_in_done():
    """Each token is an event with the id and model given, then the finish and [DONE]."""
    text = ollama_chunks_to_openai_sse(
        await native_chunks(), model="gpt", completion_id="chatcmpl-7-a", include_usage=True
    )
    *events, last, rest = text.split("\n\n")
    parsed = [orjson.loads(event.removeprefix("data: ")) for event in events]
    said = [event["choices"][0]["delta"].get("content", "") for event in parsed if event["choices"]]
    assert (last, rest) == ("data: [DONE]", "")
    assert "".join(said) == "Echo: one two"
    assert {(event["id"], event["model"]) for event in parsed} == {("chatcmpl-7-a", "gpt")}
    assert parsed[0]["choices"][0]["delta"]["role"] == "assistant"
    assert parsed[-1]["usage"]["completion_tokens"] == 3
    assert parsed[0]["created"] > 1_700_000_000


async def test_a_broken_stream_has_no_done():
    """Chunks without a final object are refused."""
    chunks = await native_chunks()
    with pytest.raises(ValueError, match="done"):
        ollama_chunks_to_openai_sse(chunks[:-1], model="gpt")
