"""/v1/embeddings: the request, in upstream's terms, and its answer."""

from __future__ import annotations

import base64
import sys
from array import array
from typing import TYPE_CHECKING, Any

import orjson

from trio_gateway.core.domain import Call
from trio_gateway.core.errors import UpstreamError
from trio_gateway.dialects import fields
from trio_gateway.dialects.ollama_parse import MAX_INPUTS
from trio_gateway.dialects.openai_rendering import EmbeddingWishes, Whole
from trio_gateway.dialects.openai_values import read_model
from trio_gateway.dialects.strict_json import parse_object

if TYPE_CHECKING:
    from trio_gateway.core.domain import Chunk

ENDPOINT = "/v1/embeddings"
KNOWN = frozenset({"model", "input", "encoding_format", "dimensions"})

Json = dict[str, Any]


def parse(body: bytes) -> Call:
    """Parse a request body; raises InvalidCall naming a field, or ModelNotFound."""
    raw = parse_object(body, KNOWN)
    requested, model = read_model(raw)
    inputs = _inputs(raw)
    dimensions = fields.integer(raw, "dimensions", low=1, high=fields.INT32_MAX)
    # OpenAI refuses an input that is too long; upstream would cut it and not say so.
    upstream: Json = {"input": inputs, "truncate": False}
    if dimensions is not None:
        upstream["dimensions"] = dimensions
    return Call(
        endpoint=ENDPOINT,
        upstream="/api/embed",
        requested=requested,
        model=model,
        body=upstream,
        generates=False,
        prompt_bytes=sum(map(fields.size, inputs)),
        parts=len(inputs),
        rendering=EmbeddingWishes(base64=_encoding(raw) == "base64", inputs=len(inputs)),
    )


def render(call: Call, *, request_id: str, created: float) -> EmbeddingAnswer:  # noqa: ARG001 - every dialect's signature; this shape has no id and no date
    """Open the answer to one call."""
    return EmbeddingAnswer(call)


def _inputs(raw: Json) -> list[str]:
    """Read one text or several; an empty text is embedded too, where a bare one would not be."""
    given = raw.get("input")
    if isinstance(given, str):
        return [given]
    inputs = fields.required(fields.texts(raw, "input", most=MAX_INPUTS), "input")
    if not inputs:
        raise fields.refusal("input", "must not be empty")
    return inputs


def _encoding(raw: Json) -> str:
    given = fields.text(raw, "encoding_format") or "float"
    encoding = given.lower()
    if encoding not in {"float", "base64"}:
        raise fields.refusal("encoding_format", "must be float or base64")
    return encoding


class EmbeddingAnswer(Whole):
    """Renders the one object that upstream answers an embedding call with."""

    def __init__(self, call: Call) -> None:
        """Take the wishes and the model's requested name from the call."""
        self._wishes: EmbeddingWishes = call.rendering
        self._model = call.requested
        self._vectors: list[Any] = []
        self._prompt_tokens = 0

    def absorb(self, chunk: Chunk) -> None:
        """Take the vectors, in the order of the inputs, and the count of tokens."""
        vectors = chunk.raw.get("embeddings")
        self._vectors += vectors if isinstance(vectors, list) else []
        self._prompt_tokens += max(chunk.prompt_tokens or 0, 0)

    def body(self) -> bytes:
        """Encode the answer; raise UpstreamError unless there is a vector for every input."""
        if len(self._vectors) != self._wishes.inputs:
            raise UpstreamError
        encode = _little_endian if self._wishes.base64 else list
        try:
            vectors = [encode(vector) for vector in self._vectors]
        except (TypeError, OverflowError):
            raise UpstreamError from None
        entries = [
            {"object": "embedding", "index": index, "embedding": vector}
            for index, vector in enumerate(vectors)
        ]
        counts = {"prompt_tokens": self._prompt_tokens, "total_tokens": self._prompt_tokens}
        answer = {"object": "list", "data": entries, "model": self._model, "usage": counts}
        return orjson.dumps(answer)


def _little_endian(vector: list[float]) -> str:
    """Pack a vector as OpenAI's clients unpack it: little-endian 32-bit floats in base64."""
    packed = array("f", vector)
    if sys.byteorder == "big":
        packed.byteswap()
    return base64.b64encode(packed.tobytes()).decode()
