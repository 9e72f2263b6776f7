"""What the simulated Ollama has seen: requests, generations and how each one ended."""

from __future__ import annotations

import time
from collections import Counter, deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import trio

from trio_gateway.simulator.models import canonical, is_cloud, make_catalog, make_model
from trio_gateway.simulator.script import Script

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from trio_gateway.simulator.models import Model

RING = 1000
KEPT_BYTES = 64 * 1024 * 1024  # of request bodies
INFERENCE = frozenset({"/api/chat", "/api/generate", "/api/embed", "/api/embeddings"})
PLAIN = Script()

# done: the reply was made to its end; failed: refused, or ended as the script said;
# disconnected: the caller left first.
End = Literal["done", "failed", "disconnected"]


@dataclass(slots=True)
class Generation:
    """One request to an inference route.

    Times are seconds of CLOCK_MONOTONIC, which all processes of a machine share.
    """

    id: int
    path: str
    headers: list[tuple[str, str]]
    started_at: float
    model: str = ""  # as requested
    body: dict[str, Any] = field(default_factory=dict)
    status: int | None = None
    first_byte_at: float | None = None
    ended_at: float | None = None
    end: End | None = None
    tokens: int = 0
    outcome: End = "disconnected"  # what `end` becomes when the request is over

    def answer(self, status: int) -> None:
        """Note that the head goes out."""
        self.status = status
        self.first_byte_at = time.monotonic()

    def report(self) -> dict[str, Any]:
        """Return everything as JSON types."""
        names = (name for name in self.__dataclass_fields__ if name != "outcome")
        return {name: getattr(self, name) for name in names}


class Simulation:
    """The models, the scripts and the observations of one simulated Ollama."""

    def __init__(
        self, models: Iterable[str | Mapping[str, Any] | Model], scripts: Iterable[Script] = ()
    ) -> None:
        """Start with these models and scripts."""
        self.models: dict[str, Model] = {}
        self.loaded: dict[str, Model] = {}
        self._waiting: trio.Event | None = None
        self._scripts: list[tuple[Script, list[int]]] = []
        self.stock(models)
        self.play(*scripts)
        self.reset()

    def reset(self) -> None:
        """Forget every observation, but for the generations still open."""
        self.generations: deque[Generation] = deque(maxlen=RING)
        self.requests: Counter[str] = Counter()
        self.management: list[str] = []
        self._bodies: deque[tuple[Generation, int]] = deque()
        self._kept = 0
        self.started = 0
        self.open: int = getattr(self, "open", 0)
        self.max_open = self.open

    def stock(self, models: Iterable[str | Mapping[str, Any] | Model]) -> None:
        """Replace the models."""
        self.models = make_catalog(models)
        self.loaded = {name: found for name, found in self.loaded.items() if name in self.models}

    def play(self, *scripts: Script) -> None:
        """Replace the scripts; the first that matches a request serves it."""
        self._scripts = [
            (script, [-1 if script.times is None else script.times]) for script in scripts
        ]
        self.notice()

    @property
    def scripts(self) -> list[Script]:
        """The scripts that still have requests to serve."""
        return [script for script, left in self._scripts if left[0]]

    async def replaced(self, script: Script) -> None:
        """Wait until the script is none of those that are played."""
        await self.until(lambda _: all(script is not played for played, _left in self._scripts))

    def choose(self, path: str, model: str | None, *, unread: bool = False) -> Script:
        """Take the script for a request; `unread` asks for those that need no body."""
        for script, left in self._scripts:
            here = path in INFERENCE if script.path is None else script.path == path
            named = script.model is None or (
                model is not None and canonical(script.model) == canonical(model)
            )
            if left[0] and here and named and script.never_reads is unread:
                left[0] -= left[0] > 0
                return script
        return PLAIN

    def find(self, name: str) -> Model | None:
        """Find a model by any spelling of its name; cloud names need no pull."""
        key = canonical(name)
        found = self.models.get(key)
        return make_model(key) if found is None and is_cloud(key) else found

    def begin(self, path: str, headers: list[tuple[str, str]]) -> Generation:
        """Open the record of a request to an inference route."""
        self.started += 1
        self.open += 1
        self.max_open = max(self.max_open, self.open)
        generation = Generation(self.started, path, headers, time.monotonic())
        self.generations.append(generation)
        self.notice()
        return generation

    def keep(self, generation: Generation, body: dict[str, Any], size: int) -> None:
        """Keep the body of a request, of `size` bytes; the oldest give way, and become {}."""
        generation.body = body
        generation.model = body.get("model", "")
        self._bodies.append((generation, size))
        self._kept += size
        while len(self._bodies) > 1 and (self._kept > KEPT_BYTES or len(self._bodies) > RING):
            oldest, given_up = self._bodies.popleft()
            oldest.body = {}
            self._kept -= given_up
        self.notice()

    def finish(self, generation: Generation) -> None:
        """Close the record: the request is over, by its outcome or by the caller leaving."""
        self.open -= 1
        generation.end = generation.outcome
        generation.ended_at = time.monotonic()
        self.notice()

    def notice(self) -> None:
        """Wake whoever waits for a change."""
        if self._waiting is not None:
            self._waiting.set()
            self._waiting = None

    async def until(self, condition: Callable[[Simulation], bool]) -> None:
        """Wait until the condition holds; it is looked at when requests come, write and end."""
        while not condition(self):
            if self._waiting is None:
                self._waiting = trio.Event()
            await self._waiting.wait()

    def report(self, after: int = 0) -> dict[str, Any]:
        """Return the observations as JSON types, with the generations whose id is above."""
        return {
            "requests": dict(self.requests),
            "management": list(self.management),
            "started": self.started,
            "open": self.open,
            "max_open": self.max_open,
            "generations": [item.report() for item in self.generations if item.id > after],
        }
