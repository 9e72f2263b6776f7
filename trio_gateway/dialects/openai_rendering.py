"""What OpenAI's answers share: what the caller asked of them, and the two ways to send them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from trio_gateway.dialects import sse
from trio_gateway.dialects.openai_errors import encode_error, encode_event

if TYPE_CHECKING:
    from trio_gateway.core.domain import Chunk
    from trio_gateway.core.errors import GatewayError

FINGERPRINT = "fp_ollama"


@dataclass(frozen=True, slots=True)
class ChatWishes:
    """How the caller of /v1/chat/completions wants to be answered.

    `think_is_wish`: a model that cannot think gets the call without `think`, not a refusal.
    """

    include_usage: bool = False
    logprobs: bool = False
    single_tool_call: bool = False
    legacy_function: bool = False  # answer by `function_call`, as `functions` was sent
    think_is_wish: bool = False


@dataclass(frozen=True, slots=True)
class CompletionWishes:
    """How the caller of /v1/completions wants to be answered; None is no logprobs."""

    include_usage: bool = False
    logprobs: int | None = None
    think_is_wish: bool = True


@dataclass(frozen=True, slots=True)
class EmbeddingWishes:
    """How the caller of /v1/embeddings wants its vectors, and how many are due."""

    base64: bool = False
    inputs: int = 1
    think_is_wish: bool = False


class Streamed:
    """An answer of events; `absorb` and `body` gather them for whoever wants them whole."""

    content_type = sse.CONTENT_TYPE

    def __init__(self) -> None:
        """Start with no event gathered."""
        self._gathered: list[bytes] = []

    def chunk(self, chunk: Chunk) -> bytes:
        """Encode one chunk as zero or more events; the done chunk ends with `[DONE]`."""
        raise NotImplementedError

    def absorb(self, chunk: Chunk) -> None:
        """Keep the events of one chunk for `body`."""
        self._gathered.append(self.chunk(chunk))

    def body(self) -> bytes:
        """Return every event gathered so far."""
        return b"".join(self._gathered)

    def error(self, error: GatewayError) -> bytes:
        """Encode the event that ends a broken stream."""
        return encode_event(error)


class Whole:
    """An answer of one JSON document; `chunk` returns it with the done chunk."""

    content_type = "application/json"

    def absorb(self, chunk: Chunk) -> None:
        """Take one chunk in."""
        raise NotImplementedError

    def body(self) -> bytes:
        """Encode the document, or raise UpstreamError where the done chunk never came."""
        raise NotImplementedError

    def chunk(self, chunk: Chunk) -> bytes:
        """Take one chunk in; nothing comes out before the done chunk."""
        self.absorb(chunk)
        return self.body() if chunk.done else b""

    def error(self, error: GatewayError) -> bytes:
        """Encode the whole error body."""
        return encode_error(error)


def identify(prefix: str, request_id: str) -> str:
    """Name an answer after its request, so that no two answers share an id."""
    return prefix + request_id.removeprefix("req_").replace("-", "")


def usage(chunk: Chunk) -> dict[str, Any]:
    """Shape the done chunk's counts, in tokens; what upstream left out, or cannot mean, is zero."""
    prompt, output = max(chunk.prompt_tokens or 0, 0), max(chunk.output_tokens or 0, 0)
    return {
        "prompt_tokens": prompt,
        "completion_tokens": output,
        "total_tokens": prompt + output,
    }


def finish(reason: str | None, *, called: str | None = None) -> str:
    """Map upstream's reason to one of OpenAI's.

    `called` is the word for an answer that calls tools. A cut answer says `length` even then;
    upstream's own words, such as `load`, never get through.
    """
    if reason in {"length", "content_filter"}:
        return str(reason)
    return called or "stop"
