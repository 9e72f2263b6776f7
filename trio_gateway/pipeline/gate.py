"""The Gate: the wired services that a call passes, and the rules that need several of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from trio_gateway.core.errors import ModelNotFound
from trio_gateway.core.models import allowed, effective, is_cloud

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from trio_gateway.clients.upstream import Upstream
    from trio_gateway.core.domain import CatalogModel, ModelPolicy, Principal
    from trio_gateway.core.timeline import Timeline
    from trio_gateway.services.backends import Backends
    from trio_gateway.services.catalog import Catalog
    from trio_gateway.services.ledger.writer import LedgerWriter
    from trio_gateway.services.policies import Policies
    from trio_gateway.services.quota.quota import Quota


def _unobserved(_: Timeline) -> None:
    """Look away."""


@dataclass(frozen=True, slots=True)
class Rules:
    """Numbers that hold for every call; times in seconds, sizes in tokens."""

    default_output: int
    call_timeout: float
    write_stall: float
    lease: float
    keep_alive: str


@dataclass(frozen=True, slots=True)
class Route:
    """Where an authorized call may go, and on what terms."""

    backends: Sequence[str]
    upstream_name: str  # the model as upstream itself spells it
    policy: ModelPolicy
    thinks: bool

    @property
    def load_options(self) -> dict[str, Any]:
        """Load-time options that the operator pinned."""
        return {} if self.policy.num_ctx is None else {"num_ctx": self.policy.num_ctx}


@dataclass(frozen=True, slots=True)
class Gate:
    """Everything a call meets between its principal and its ledger row."""

    rules: Rules
    policies: Policies
    catalog: Catalog
    quota: Quota
    writer: LedgerWriter
    backends: Backends
    upstream: Upstream
    observe: Callable[[Timeline], None] = _unobserved  # once for each call, when it is over

    def authorize(self, principal: Principal, name: str) -> Route:
        """Find the way for a canonical model name, or raise ModelNotFound.

        Not allowed, not there, and there with another digest than the pinned one are the same.
        """
        policy = self.policies.policy(name)
        found = self.catalog.find(name)
        cloud = is_cloud(name) or (found is not None and found[0].remote)
        permitted = allowed(
            principal.tenant, principal.key, name, cloud=cloud, blocked=policy.blocked
        )
        if not permitted or found is None or not _is_pinned(found[0], policy):
            raise ModelNotFound
        model, backends = found
        raw = model.raw
        capabilities = raw.get("capabilities")
        return Route(
            backends=backends,
            upstream_name=str(raw.get("model") or raw.get("name")),
            policy=policy,
            thinks=not isinstance(capabilities, list) or "thinking" in capabilities,
        )

    def models(self, principal: Principal) -> list[CatalogModel]:
        """Return the models that this caller may use right now."""
        found = effective(
            principal.tenant, principal.key, self.catalog.models(), self.policies.blocked
        )
        return [model for model in found if _is_pinned(model, self.policies.policy(model.name))]


def _is_pinned(model: CatalogModel, policy: ModelPolicy) -> bool:
    return policy.digest is None or policy.digest == model.digest
