"""`python -m tests.dashboard.screenshots [--out DIR]`: the main pages, believably filled.

Each page at a desktop's and a phone's width, in both themes. Without `--out` they go into a
temporary folder, which is named; the README's picture is written to deploy/screenshots.
"""

from __future__ import annotations

import argparse
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import trio

from tests import stores
from tests.dashboard.drive import drive
from tests.dashboard.sample import MODELS, busy, fill
from tests.integration.admin_world import AdminWorld, open_admin
from tests.world import open_world
from trio_gateway.core.officers import Role

PICTURE = Path(__file__).parents[2] / "deploy" / "screenshots" / "overview.png"


def main() -> None:
    """Start stores, a gateway and a browser, and take the pictures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, help="where the pictures go")
    parser.add_argument("--only", help="a page's name")
    given = parser.parse_args()
    out = given.out or Path(tempfile.mkdtemp(prefix="screenshots-"))
    out.mkdir(parents=True, exist_ok=True)
    with (
        stores.scratch() as folder,
        stores.running(folder) as running,
        stores.fresh_database(running) as database_url,
    ):
        trio.run(_main, database_url, stores.fresh_redis(running), out, given.only)
    print(out)


async def _main(database_url: str, redis_url: str, out: Path, only: str | None) -> None:
    async with (
        open_world(database_url, redis_url, models=MODELS, batch_concurrency=2) as world,
        open_admin(world, webhook_hosts="hooks.example.com") as admin,
    ):
        keys = await fill(world)
        async with busy(world, keys) as batch_id:
            pages = await _pages(admin, keys, batch_id)
            token = await admin.token(Role.ADMIN)
            await drive(
                "tests.dashboard.pictures",
                "take",
                base_url=admin.base_url,
                token=token,
                pages={name: path for name, path in pages.items() if only in {None, name}},
                out=str(out),
                picture=str(PICTURE) if only in {None, "overview"} else None,
            )


async def _pages(admin: AdminWorld, keys: dict[str, Any], batch_id: str) -> dict[str, str]:
    key = keys["support-desk"]
    return {
        "overview": "/",
        "usage": "/usage?span=30d&by=model",
        "usage-of-keys": f"/usage?span={datetime.now(UTC):%Y-%m}&by=key&tenant=support-desk",
        "calls": "/calls",
        "tenants": "/tenants",
        "tenant": f"/tenants/{keys['research']['tenant_id']}",
        "tenant-form": f"/tenants/{key['tenant_id']}/edit",
        "key": f"/keys/{key['id']}",
        "key-form": f"/tenants/{key['tenant_id']}/keys/new",
        "keys": "/keys",
        "models": "/models",
        "batches": "/batches",
        "batch": f"/batches/{batch_id}",
        "files": "/files",
        "ledger": "/ledger",
        "call": "/ledger/req_000000000000000000000007",
        "audit": "/audit",
        "refusals": "/audit/refusals",
        "notices": "/notices",
        "webhooks": "/webhooks",
        "backends": "/backends",
        "health": "/health",
        "admins": "/admins",
        "docs": "/docs",
    }


if __name__ == "__main__":
    main()
