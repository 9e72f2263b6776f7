"""The nouns of the gateway: frozen values, no behavior that needs a store."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from datetime import datetime


class Period(StrEnum):
    """The span a budget covers; spans begin at midnight UTC."""

    DAY = "day"
    MONTH = "month"
    TOTAL = "total"


class Outcome(StrEnum):
    """How an admitted call ended."""

    COMPLETED = "completed"
    ABORTED = "aborted"  # the client left
    REVOKED = "revoked"
    CUT = "cut"  # the hold or a limit was reached, or an operator ended it
    TIMEOUT = "timeout"
    UPSTREAM_ERROR = "upstream_error"
    REFUSED = "refused"  # admitted, never dispatched
    DRAINED = "drained"
    LOST = "lost"  # found by the sweep


class Basis(StrEnum):
    """What a charge rests on."""

    FINAL = "final"  # counts from Ollama
    PARTIAL = "partial"  # prompt estimate plus chunks counted
    ESTIMATED = "estimated"  # prompt estimate alone
    NONE = "none"  # never dispatched


@dataclass(frozen=True, slots=True)
class Limits:
    """What a tenant or a key may use; None is unlimited, 0 is none.

    Tokens are counted in units: tokens times the model's weight, rounded up.
    """

    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    budget: int | None = None
    budget_period: Period = Period.MONTH
    max_output_tokens: int | None = None


@dataclass(frozen=True, slots=True)
class Tenant:
    """Who pays. `models` holds canonical names and counts only without `all_models`."""

    id: str
    name: str
    limits: Limits = Limits()
    all_models: bool = False
    models: frozenset[str] = frozenset()
    allow_cloud: bool = False
    weight_share: int = 1


@dataclass(frozen=True, slots=True)
class ApiKey:
    """What a caller presents. `models` None inherits the tenant's; a set narrows it."""

    id: str
    public_id: str
    tenant_id: str
    name: str = ""
    limits: Limits = Limits()
    models: frozenset[str] | None = None
    expires_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class Principal:
    """A tenant and one of its keys, proven."""

    tenant: Tenant
    key: ApiKey


@dataclass(frozen=True, slots=True)
class ModelPolicy:
    """What the operator decided for one model; the weight is in thousandths."""

    name: str
    blocked: bool = False
    milli_weight: int = 1000
    num_ctx: int | None = None
    digest: str | None = None


@dataclass(frozen=True, slots=True)
class CatalogModel:
    """One model that discovery saw; `raw` is its entry in /api/tags, as parsed."""

    name: str  # canonical
    digest: str
    remote: bool
    raw: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Call:
    """One parsed inference request, in the upstream's terms.

    `body` holds validated upstream fields except `model`, `stream` and `keep_alive`;
    its `options`, if any, hold neither `num_predict` nor a load-time option: the
    gateway adds those. `rendering` belongs to the dialect that parsed the call.
    """

    endpoint: str  # the public route, such as /v1/chat/completions
    upstream: str  # the upstream path, such as /api/chat
    requested: str  # the model as the caller wrote it
    model: str  # its canonical name
    body: dict[str, Any]
    stream: bool = False
    generates: bool = True  # False for embeddings: no output tokens
    ask: int | None = None  # the caller's output limit; None where there is none
    prompt_bytes: int = 0  # UTF-8 bytes of everything the model will read
    parts: int = 1  # messages or inputs, each costs a little template
    images: int = 0
    rendering: Any = None


@dataclass(slots=True)
class Chunk:
    """One object from upstream. `raw` is the parsed object, for the dialects only."""

    raw: dict[str, Any]
    content: str = ""
    thinking: str = ""
    tool_calls: list[dict[str, Any]] = field(default_factory=list)
    logprobs: list[dict[str, Any]] | None = None
    done: bool = False
    done_reason: str | None = None
    prompt_tokens: int | None = None  # None where upstream did not say
    output_tokens: int | None = None

    @property
    def tokens(self) -> int:
        """How many output tokens to count for this chunk while no total is known."""
        if self.logprobs:
            return len(self.logprobs)
        return 1 if self.content or self.thinking or self.tool_calls else 0


@dataclass(frozen=True, slots=True)
class Window:
    """One limit as a caller sees it; `reset` is in seconds, None where it never resets."""

    limit: int
    remaining: int
    reset: float | None


@dataclass(frozen=True, slots=True)
class Standing:
    """What the tighter of key and tenant has left; None where neither is limited."""

    requests: Window | None = None
    tokens: Window | None = None
    budget: Window | None = None


@dataclass(frozen=True, slots=True)
class LedgerRow:
    """One row of `gateway.ledger`; `started_us` is microseconds since the epoch, by Redis TIME."""

    request_id: str
    tenant_id: str
    key_id: str
    endpoint: str
    model: str
    status_code: int
    outcome: Outcome
    basis: Basis
    prompt_tokens: int
    completion_tokens: int
    charged_tokens: int
    held_tokens: int
    backend: str | None
    started_us: int
    ttft_ms: float | None
    duration_ms: float
    batch_id: str | None = None
