"""Rows of `gateway.tenants` and `gateway.api_keys`, and what they mean."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from trio_gateway.clients.postgres import NotMigrated
from trio_gateway.core.domain import ApiKey, Limits, Period, Principal, Tenant
from trio_gateway.core.models import InvalidModelName, canonical

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from datetime import datetime

    from trio_gateway.clients.postgres import Postgres

LIMITS = (
    "requests_per_minute",
    "tokens_per_minute",
    "budget",
    "budget_period",
    "max_output_tokens",
)
_TENANT = ("id", "name", "all_models", "models", "allow_cloud", "weight_share", *LIMITS)
_STANDING = """k.disabled_at IS NULL AND t.disabled_at IS NULL
    AND NOT EXISTS (SELECT FROM gateway.revocations r WHERE r.key_id = k.id)"""

# `extension_left`: seconds until an increase in force ends, of the two the first.
_SELECT = f"""
SELECT k.*, {", ".join(f"t.{column} AS t_{column}" for column in _TENANT)},
    gateway.effective_budget(k.budget, k.budget_extra, k.budget_extra_until) AS effective_budget,
    gateway.effective_budget(t.budget, t.budget_extra, t.budget_extra_until) AS t_effective_budget,
    extract(epoch FROM least(
        CASE WHEN k.budget_extra_until > now() THEN nullif(k.budget_extra_until, 'infinity') END,
        CASE WHEN t.budget_extra_until > now() THEN nullif(t.budget_extra_until, 'infinity') END
    ) - now())::float8 AS extension_left,
    {_STANDING} AS standing
FROM gateway.api_keys k JOIN gateway.tenants t ON t.id = k.tenant_id
"""  # noqa: S608 - constants alone
FIND_KEY = _SELECT + "WHERE k.public_id = $1 OR k.previous_public_id = $1"
RECALL_KEY = _SELECT + "WHERE k.id = $1"
STANDING_KEYS = f"""
SELECT k.id FROM gateway.api_keys k JOIN gateway.tenants t ON t.id = k.tenant_id
WHERE k.id = ANY($1::text[]) AND {_STANDING}
"""  # noqa: S608 - constants alone


@dataclass(frozen=True, slots=True)
class Candidate:
    """Whom a public id belongs to, if the secret behind `encoded` is shown as well.

    `standing` is False for a key that is revoked or disabled, or whose tenant is. `current`
    is False for the secret that a rotation replaced; `expires_at` is the key's end, or the
    overlap's where that comes first. The budgets hold for `extension_left` seconds from the
    read, by PostgreSQL's clock; None is for as long as the rows stay.
    """

    principal: Principal
    encoded: str
    standing: bool
    current: bool
    expires_at: datetime | None
    extension_left: float | None


def candidate(row: Mapping[str, Any], public_id: str) -> Candidate:
    """Read a row of FIND_KEY or RECALL_KEY, as found by one of its public ids."""
    principal = Principal(_tenant(row), _key(row))
    if row["public_id"] == public_id:
        return Candidate(
            principal,
            encoded=row["hash"],
            standing=row["standing"],
            current=True,
            expires_at=row["expires_at"],
            extension_left=row["extension_left"],
        )
    overlap = row["previous_expires_at"]
    usable = overlap is not None and row["previous_hash"] is not None
    ends = [instant for instant in (overlap, row["expires_at"]) if instant is not None]
    return Candidate(
        principal,
        encoded=row["previous_hash"] or "",
        standing=row["standing"] and usable,
        current=False,
        expires_at=min(ends, default=None),
        extension_left=row["extension_left"],
    )


def limits_of(row: Mapping[str, Any], prefix: str = "") -> Limits:
    """Read the limits of a tenant's or a key's row."""
    return Limits(
        requests_per_minute=row[f"{prefix}requests_per_minute"],
        tokens_per_minute=row[f"{prefix}tokens_per_minute"],
        budget=row[f"{prefix}effective_budget"],
        budget_period=Period(row[f"{prefix}budget_period"]),
        max_output_tokens=row[f"{prefix}max_output_tokens"],
    )


async def read_installation_secret(postgres: Postgres) -> bytes:
    """Return the secret that signs keys; raises NotMigrated or StoreUnavailable."""
    row = await postgres.fetch_one("SELECT key_secret FROM gateway.installation")
    if row is None:
        raise NotMigrated
    return bytes(row["key_secret"])


def _tenant(row: Mapping[str, Any]) -> Tenant:
    return Tenant(
        id=row["t_id"],
        name=row["t_name"],
        limits=limits_of(row, "t_"),
        all_models=row["t_all_models"],
        models=_canonical(row["t_models"]),
        allow_cloud=row["t_allow_cloud"],
        weight_share=row["t_weight_share"],
    )


def _key(row: Mapping[str, Any]) -> ApiKey:
    models: Iterable[str] | None = row["models"]
    return ApiKey(
        id=row["id"],
        public_id=row["public_id"],
        tenant_id=row["tenant_id"],
        name=row["name"],
        limits=limits_of(row),
        models=None if models is None else _canonical(models),
        expires_at=row["expires_at"],
    )


def _canonical(names: Iterable[str]) -> frozenset[str]:
    """Spell names as calls are compared; rows may be written by hand. One of no model is none."""
    found = set()
    for name in names:
        with contextlib.suppress(InvalidModelName):
            found.add(canonical(name).full)
    return frozenset(found)
