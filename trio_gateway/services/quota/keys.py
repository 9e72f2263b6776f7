"""Names of the keys in Redis, and the scripts that work on them.

Everything of a tenant shares one hash tag, so that a script touches one slot. The index of
tenants with holds and the epoch stand outside every tag.
"""

from __future__ import annotations

from importlib.resources import files

INDEX = "tg:tenants"  # sorted set: tenant id -> when a call was last announced
EPOCH = "tg:epoch"
HOLDS_PATTERN = "tg:{*}:holds"
META_PATTERN = "tg:{*}:meta"


def tenant_keys(tenant_id: str) -> list[str]:
    """Name KEYS 1..5 of every tenant script."""
    tag = f"tg:{{{tenant_id}}}:"
    return [tag + "meta", tag + "count", tag + "holds", tag + "leases", tag + "sums"]


def call_keys(tenant_id: str, key_id: str) -> list[str]:
    """Name KEYS 1..9 of the scripts that also touch the windows."""
    tag = f"tg:{{{tenant_id}}}:"
    windows = [tag + "req:t", tag + "tok:t", f"{tag}req:k:{key_id}", f"{tag}tok:k:{key_id}"]
    return tenant_keys(tenant_id) + windows


def tenant_of(key: str) -> str:
    """Take the tenant id out of one of its keys."""
    return key[key.index("{") + 1 : key.rindex("}")]


def scripts() -> dict[str, str]:
    """Load every script by name, the shared part in front of those of a tenant."""
    folder = files("trio_gateway.services.quota") / "lua"
    text = {
        entry.name.removesuffix(".lua"): entry.read_text(encoding="utf-8")
        for entry in folder.iterdir()
        if entry.name.endswith(".lua")
    }
    common = text.pop("common")
    alone = {"epoch", "unlist"}
    return {name: body if name in alone else common + body for name, body in text.items()}
