"""The simulated Ollama for integration tests, and its chunks as OpenAI's events."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Any

import orjson
import pytest

from trio_gateway.core.domain import Call
from trio_gateway.dialects import ollama, openai_chat
from trio_gateway.dialects.openai_rendering import ChatWishes
from trio_gateway.simulator.app import Simulator, create_app
from trio_gateway.simulator.models import DEFAULT_MODELS

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

_ID = "mock"


def create_mock_ollama(models: Iterable[str | Mapping[str, Any]] = DEFAULT_MODELS) -> Simulator:
    """Make a Quart-Trio app that answers as an Ollama with these models would.

    It runs in process through `httpx.ASGITransport(app=...)` or on a socket through
    `trio_gateway.simulator.server.serve`. `app.sim.play(Script(...))` sets its behavior,
    `app.sim.generations` and `app.sim.requests` tell what reached it.
    """
    return create_app(models)


@pytest.fixture
def mock_ollama_app() -> Simulator:
    """A simulated Ollama with the default models."""
    return create_mock_ollama()


def ollama_chunks_to_openai_sse(
    chunks: Sequence[Mapping[str, Any]],
    *,
    model: str,
    completion_id: str = "chatcmpl-mock",
    include_usage: bool = False,
) -> str:
    """Render native chat chunks as the text of an OpenAI event stream.

    It ends in `data: [DONE]`; ValueError if the last chunk is not done, for a broken
    stream must not look like a finished one.
    """
    if not chunks or chunks[-1].get("done") is not True:
        raise ValueError("the last chunk must be done")
    call = Call(
        endpoint="/v1/chat/completions",
        upstream="/api/chat",
        requested=model,
        model=model,
        body={},
        stream=True,
        rendering=ChatWishes(include_usage=include_usage, logprobs="logprobs" in chunks[0]),
    )
    stream = openai_chat.render(call, request_id=_ID, created=_created(chunks[0]))
    events = [stream.chunk(ollama.parse_chunk(call, orjson.dumps(chunk))) for chunk in chunks]
    given = orjson.dumps(completion_id).decode()
    return b"".join(events).decode().replace(f'"id":"chatcmpl-{_ID}"', f'"id":{given}')


def _created(chunk: Mapping[str, Any]) -> int:
    written = chunk.get("created_at")
    if not isinstance(written, str):
        return 0
    # Nine digits of fraction are more than older Pythons read.
    seconds, _, rest = written.partition(".")
    zone = rest.lstrip("0123456789") or "Z"
    return int(datetime.fromisoformat(seconds.removesuffix("Z") + zone).timestamp())
