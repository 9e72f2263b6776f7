"""What a call costs: the estimate before it, the count while it runs, the charge after it.

Ollama's own counts are charged where it finished and they can be true. Otherwise the
prompt is charged as estimated and the output as counted, one token for each chunk.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from trio_gateway.core.domain import Basis

if TYPE_CHECKING:
    from trio_gateway.core.domain import Call, Chunk

BYTES_PER_TOKEN = 4
TOKENS_PER_PART = 4  # what a template writes around one message
TOKENS_PER_IMAGE = 768

# A count past these is a lie: no tokenizer makes more than a few tokens of a byte. The two
# allowances are for what the gateway cannot see: the template and a baked-in system prompt.
MOST_TOKENS_PER_BYTE = 4
MOST_TOKENS_PER_CALL = 256
MOST_TOKENS_PER_PART = 16
MOST_TOKENS_PER_IMAGE = 16_384

_UNCOUNTED = "/api/embeddings"  # the one endpoint that reports no counts


@dataclass(frozen=True, slots=True)
class Usage:
    """The tokens that a call is charged for, before the model's weight."""

    prompt_tokens: int
    completion_tokens: int
    basis: Basis

    @property
    def tokens(self) -> int:
        """Prompt and completion together."""
        return self.prompt_tokens + self.completion_tokens


@dataclass(slots=True)
class Count:
    """What is known of a call's tokens so far.

    `estimate` is of the prompt, `ceiling` is the most output it was given (None: any), and
    `seen` counts output by its chunks. `prompt` and `output` are upstream's own counts, None
    where it named none; they mean something once `final` is true.
    """

    estimate: int
    ceiling: int | None = None
    dispatched: bool = False
    seen: int = 0
    final: bool = False
    prompt: int | None = None
    output: int | None = None

    def meter(self, chunk: Chunk) -> None:
        """Take one chunk into account."""
        self.seen += chunk.tokens
        if chunk.done:
            self.final = True
            self.prompt, self.output = chunk.prompt_tokens, chunk.output_tokens


def estimate(call: Call) -> int:
    """Return how many tokens the prompt probably has."""
    text = -(-call.prompt_bytes // BYTES_PER_TOKEN)
    return text + TOKENS_PER_PART * call.parts + TOKENS_PER_IMAGE * call.images


def charge(tokens: int, milli_weight: int) -> int:
    """Return the units for some tokens, rounded up; the weight is in thousandths."""
    return -(-tokens * milli_weight // 1000)


def believe(call: Call, count: Count) -> Usage:
    """Return the usage to charge, and what it rests on.

    Never dispatched: nothing. Finished with counts that can be true: those, absent being
    zero. Finished with others, or not finished: the estimate and the chunks seen.
    """
    if not count.dispatched:
        return Usage(0, 0, Basis.NONE)
    if count.final and call.upstream == _UNCOUNTED:
        return Usage(count.estimate, 0, Basis.ESTIMATED)
    ceiling = count.ceiling if call.generates else 0
    if count.final:
        prompt, output = count.prompt or 0, count.output or 0
        possible = 0 <= prompt <= _most_prompt(call) and output >= 0
        if possible and (ceiling is None or output <= ceiling):
            return Usage(prompt, output, Basis.FINAL)
    basis = Basis.PARTIAL if count.final or count.seen else Basis.ESTIMATED
    seen = count.seen if ceiling is None else min(count.seen, ceiling)
    return Usage(count.estimate, seen, basis)


def _most_prompt(call: Call) -> int:
    text = MOST_TOKENS_PER_BYTE * call.prompt_bytes + MOST_TOKENS_PER_PART * call.parts
    return text + MOST_TOKENS_PER_IMAGE * call.images + MOST_TOKENS_PER_CALL
