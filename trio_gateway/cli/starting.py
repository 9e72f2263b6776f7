"""What `quickstart` and `serve` do once their options are read."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import trio

from trio_gateway import datadir
from trio_gateway.bootstrap import first_admin, first_key, is_current
from trio_gateway.clients.schema import SCHEMA_VERSION
from trio_gateway.installation import Hooks
from trio_gateway.quickstart import QuickstartOptions, ServeOptions, run, serve_installation

if TYPE_CHECKING:
    from pathlib import Path


def _first_key(database_url: str) -> tuple[str, str | None]:
    # in a thread beside the supervisor's own run
    return trio.run(first_key, database_url)


def _upgrade(database_url: str) -> str:
    if trio.run(is_current, database_url):
        return SCHEMA_VERSION
    # alembic and SQLAlchemy take a second to import, which is for the first start to pay
    from trio_gateway.migrate import upgrade  # noqa: PLC0415

    return upgrade(database_url)


def _first_admin(database_url: str, digest: str | None) -> str | None:
    return trio.run(first_admin, database_url, digest)


HOOKS = Hooks(
    upgrade=_upgrade,
    first_key=_first_key,
    first_admin=_first_admin,
    admin="trio_gateway.admin_asgi:app",
)


def quickstart(*, as_json: bool, data_dir: Path | None, **options: Any) -> int:
    """Run until told to stop; return the exit code."""
    folder = data_dir or datadir.default_path()
    return run(QuickstartOptions(json=as_json, data_dir=folder, **options), HOOKS)


def serve(*, as_json: bool, **options: Any) -> int:
    """Run until told to stop; return the exit code."""
    return serve_installation(ServeOptions(json=as_json, **options), HOOKS)
