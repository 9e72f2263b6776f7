"""Whose lines go next: pure decisions, nothing here waits or looks at a clock.

A model's lines run together, as loading another costs a GPU seconds; within a model the tenants
go in turn. Every worker of an installation turns to the same models at the same time, without a
word between them: the time alone says which.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

TURN = 60.0  # seconds for one model while lines of another wait for the same backend


@dataclass(frozen=True, slots=True)
class Candidate:
    """A batch that has lines of one model to run; candidates come in the order of their ends."""

    batch_id: str
    tenant_id: str
    share: int
    model: str


class Turns:
    """One worker's memory of how much each tenant was served."""

    def __init__(self, backends_of: Callable[[str], Sequence[str]]) -> None:
        """`backends_of` names the backends that have a model."""
        self._backends_of = backends_of
        self._served: dict[str, float] = {}  # lines by share

    def choose(self, candidates: Sequence[Candidate], now: float) -> Candidate | None:
        """Return the first candidate of the tenant least served, among the models whose turn it is.

        `now` is in seconds of a clock that all workers share.
        """
        self._forget_absent({candidate.tenant_id for candidate in candidates})
        models = self._turn(sorted({candidate.model for candidate in candidates}), now)
        return min(
            (candidate for candidate in candidates if candidate.model in models),
            key=lambda candidate: self._served[candidate.tenant_id],
            default=None,
        )

    def served(self, candidate: Candidate, lines: int) -> None:
        """Count lines that were given out."""
        self._served[candidate.tenant_id] += lines / candidate.share

    def _turn(self, models: Sequence[str], now: float) -> set[str]:
        """Return, for each backend, the one of its models whose turn it is."""
        hosted: dict[str, list[str]] = {}
        for model in models:
            for backend in self._backends_of(model) or ("",):
                hosted.setdefault(backend, []).append(model)
        return {names[int(now / TURN) % len(names)] for names in hosted.values()}

    def _forget_absent(self, present: set[str]) -> None:
        """Let a tenant that comes, or comes back, start level with the least served."""
        kept = {tenant: lines for tenant, lines in self._served.items() if tenant in present}
        level = min(kept.values(), default=0.0)
        self._served = {tenant: kept.get(tenant, level) - level for tenant in present}
