"""A gate without stores or sockets: what a call meets is told beforehand, the clock is virtual."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import httpx
import orjson
import trio

from trio_gateway.clients.upstream import Timeouts, Upstream
from trio_gateway.core.domain import ApiKey, CatalogModel, LedgerRow, Principal, Standing, Tenant
from trio_gateway.core.errors import GatewayError
from trio_gateway.dialects.table import INFERENCE
from trio_gateway.pipeline.admission import Errand
from trio_gateway.pipeline.exchange import Begun, carry
from trio_gateway.pipeline.gate import Gate, Rules
from trio_gateway.services.backends import Backends
from trio_gateway.services.live import Leash, Live
from trio_gateway.services.policies import Policies
from trio_gateway.services.quota.holds import DISPATCHED, QUEUED, Hold

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from trio_gateway.core.domain import Chunk

MODEL = "llama3.2:latest"
BACKEND = "http://one:1"
ESTIMATE = 8  # of "one two three": ceil(13 / 4) + 4
PRINCIPAL = Principal(
    Tenant("ten_a", "a", all_models=True), ApiKey("key_a", "public", tenant_id="ten_a")
)


def line(content: str = "t ", **more: Any) -> bytes:
    """Write one chunk as upstream would."""
    said = {"message": {"role": "assistant", "content": content}, "done": False}
    return (
        orjson.dumps({"model": MODEL, "created_at": "2026-01-01T00:00:00Z"} | said | more) + b"\n"
    )


def last(**more: Any) -> bytes:
    """Write upstream's final object."""
    final = {"done": True, "done_reason": "stop", "prompt_eval_count": 6, "eval_count": 2}
    return line("", **(final | more))


class Tape(httpx.AsyncByteStream):
    """A body: bytes are sent, numbers are seconds of silence, exceptions and calls happen."""

    def __init__(self, steps: Sequence[Any]) -> None:
        self._steps = iter(steps)
        self.closed_at: float | None = None
        self.reading = 0

    def __aiter__(self) -> Tape:
        return self

    async def __anext__(self) -> bytes:
        self.reading += 1
        for step in self._steps:
            if isinstance(step, bytes):
                return step
            if isinstance(step, Exception):
                raise step
            if callable(step):
                step()
            else:
                await trio.sleep(step)
        raise StopAsyncIteration

    async def aclose(self) -> None:
        self.closed_at = self.closed_at or trio.current_time()


@dataclass
class Player(httpx.AsyncBaseTransport):
    """Plays one tape for every request."""

    steps: Sequence[Any]
    head_delay: float = 0.0
    status: int = 200
    tapes: list[Tape] = field(default_factory=list)
    requests: list[dict[str, Any]] = field(default_factory=list)

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        self.requests.append(orjson.loads(await request.aread()))
        await trio.sleep(self.head_delay)
        self.tapes.append(Tape(self.steps))
        return httpx.Response(self.status, stream=self.tapes[-1], request=request)


@dataclass
class Counters:
    """Stands for Redis: grants every hold, or fails as told."""

    ceiling: int = 100
    delay: float = 0.0
    error: Exception | None = None
    reachable_since: float | None = 0.0
    holds: list[Hold] = field(default_factory=list)
    backends: list[str | None] = field(default_factory=list)  # as the holds name them, in order

    async def reserve(self, ask: Any, cover: Any = None) -> tuple[Hold, Standing]:
        """Take a hold, unheard by any cancel."""
        with trio.CancelScope(shield=True):
            await trio.sleep(self.delay)
        if self.error is not None:
            raise self.error
        hold = Hold(
            request_id=ask.request_id,
            tenant_id=ask.principal.tenant.id,
            key_id=ask.principal.key.id,
            started_us=1,
            ceiling=min(ask.output, self.ceiling),
            cost=ask.estimate + ask.output,
            text="",
            phase=DISPATCHED if ask.dispatched else QUEUED,
            renewed_at=trio.current_time(),
        )
        self.holds.append(hold)
        self.backends.append(ask.opaque["backend"])
        return hold, Standing()

    async def mark_dispatched(self, hold: Hold, backend: str) -> None:
        """Note that the hold's call goes to upstream."""
        await trio.lowlevel.checkpoint()
        self.backends.append(backend)
        hold.phase = DISPATCHED


@dataclass
class Book:
    """Stands for the ledger's writer."""

    stored: bool = True
    rows: list[LedgerRow] = field(default_factory=list)

    def submit(self, row: LedgerRow) -> trio.Event:
        """Take a row."""
        self.rows.append(row)
        done = trio.Event()
        if self.stored:
            done.set()
        return done


RAW = {"model": MODEL, "capabilities": ["completion"]}


@dataclass
class Shelf:
    """Stands for the catalog: one model on one backend."""

    found: Any = (CatalogModel(MODEL, "digest", remote=False, raw=RAW), [BACKEND])

    def find(self, name: str) -> Any:
        """Find the model."""
        return self.found


@dataclass
class Stage:
    """One gate, and everything that happened on it."""

    player: Player
    counters: Counters = field(default_factory=Counters)
    book: Book = field(default_factory=Book)
    backends: Backends = field(default_factory=lambda: Backends([BACKEND], 1, 4, 50.0))
    live: Live = field(default_factory=Live)
    shelf: Any = field(default_factory=Shelf)
    call_timeout: float = 1000.0
    lease: float = 1e9

    @property
    def gate(self) -> Any:
        """The wired gate."""
        rules = Rules(
            default_output=2048,
            call_timeout=self.call_timeout,
            write_stall=30.0,
            lease=self.lease,
            keep_alive="5m",
        )
        nobody: Any = None
        counters: Any = self.counters
        book: Any = self.book
        upstream = Upstream(self.player, Timeouts(first_byte=300, idle=60))
        return Gate(rules, Policies(nobody), self.shelf, counters, book, self.backends, upstream)

    @property
    def row(self) -> LedgerRow:
        """The one row."""
        (row,) = self.book.rows
        return row

    @property
    def tape(self) -> Tape:
        """The one answer that upstream gave."""
        (tape,) = self.player.tapes
        return tape


def errand() -> Errand:
    """Build an errand from a request as a caller would send it."""
    body = {"model": MODEL, "messages": [{"role": "user", "content": "one two three"}]}
    call: Any = INFERENCE["/api/chat"].parse(orjson.dumps(body))
    return Errand("req_1", PRINCIPAL, call)


@contextlib.asynccontextmanager
async def carried(stage: Stage) -> AsyncIterator[tuple[Leash, Any]]:
    """Begin a call; yields its leash and what its reader hears."""
    send, body = trio.open_memory_channel[Any](0)
    with stage.live.hold(PRINCIPAL) as leash:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(carry, stage.gate, leash, errand(), send)
            yield leash, body


async def heard(body: Any) -> tuple[list[str], type[GatewayError] | None]:
    """Read to the end; return the texts and how it ended."""
    texts: list[str] = []
    error = None
    async for item in body:
        assert error is None, "nothing comes behind the last word"
        if isinstance(item, GatewayError):
            error = type(item)
        else:
            texts += [chunk.content for chunk in chunks_of(item)]
    return texts, error


def chunks_of(item: Any) -> list[Chunk]:
    """Return an item's chunks; the first item wraps them."""
    found: list[Chunk] = item.chunks if isinstance(item, Begun) else item
    return found
