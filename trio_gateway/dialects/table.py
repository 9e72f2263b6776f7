"""Which dialect speaks on which route."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Protocol

from trio_gateway.dialects import (
    ollama,
    openai_chat,
    openai_completions,
    openai_embeddings,
    openai_errors,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from trio_gateway.core.domain import Call, Chunk
    from trio_gateway.core.errors import GatewayError


class Rendering(Protocol):
    """One answer in the making: either `chunk` for each chunk, or `absorb` each and `body`."""

    content_type: str

    def chunk(self, chunk: Chunk) -> bytes:
        """Encode one chunk of a stream; the done chunk ends it."""

    def absorb(self, chunk: Chunk) -> None:
        """Take one chunk of an answer that is sent whole."""

    def body(self) -> bytes:
        """Encode the whole answer."""

    def error(self, error: GatewayError) -> bytes:
        """Encode the last event or line of a stream that broke."""


class Render(Protocol):
    """Opens the answer to one call."""

    def __call__(self, call: Call, *, request_id: str, created: float) -> Rendering:
        """Take the time of creation in unix seconds."""


@dataclass(frozen=True, slots=True)
class Dialect:
    """One inference route: how its body is read and how its answer is written."""

    parse: Callable[[bytes], Call | ollama.Preload]
    render: Render


INFERENCE: dict[str, Dialect] = {
    "/v1/chat/completions": Dialect(openai_chat.parse, openai_chat.render),
    "/v1/completions": Dialect(openai_completions.parse, openai_completions.render),
    "/v1/embeddings": Dialect(openai_embeddings.parse, openai_embeddings.render),
} | {
    path: Dialect(partial(ollama.parse, path), ollama.render)
    for path in ("/api/chat", "/api/generate", "/api/embed", "/api/embeddings")
}


def encode_error(path: str, error: GatewayError) -> bytes:
    """Encode an error in the dialect of the path it happened on, known or not."""
    if path == "/v1" or path.startswith("/v1/"):
        return openai_errors.encode_error(error)
    return ollama.encode_error(error)
