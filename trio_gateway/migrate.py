"""Brings schema `gateway` to the version this release expects; forward only."""

from __future__ import annotations

import asyncio
import secrets
from pathlib import Path
from typing import TYPE_CHECKING

from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory
from sqlalchemy import text
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.pool import NullPool

from trio_gateway.clients.postgres import connect, mapped_errors, run_once

if TYPE_CHECKING:
    from sqlalchemy import Connection

LOCK = 0x7467_6D69  # one migration at a time, whoever starts it


def _config() -> Config:
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "clients/migrations"))
    config.set_main_option("path_separator", "os")
    return config


def head() -> str:
    """Name the version this release expects."""
    return ScriptDirectory.from_config(_config()).get_current_head() or ""


async def current(database_url: str) -> str | None:
    """Name the version the database is at, None before the first; an asyncio function."""
    found = await run_once(database_url, "SELECT to_regclass('gateway.alembic_version') AS it")
    if found[0]["it"] is None:
        return None
    rows = await run_once(database_url, "SELECT version_num FROM gateway.alembic_version")
    return str(rows[0]["version_num"]) if rows else None


def upgrade(database_url: str) -> str:
    """Run what is missing, in one transaction, and return the version reached.

    Raises StoreUnavailable where PostgreSQL is out of reach.
    """
    with mapped_errors():
        asyncio.run(_upgrade(database_url))
    return head()


async def _upgrade(database_url: str) -> None:
    engine = create_async_engine(
        "postgresql+asyncpg://",
        async_creator=lambda: connect(database_url),
        poolclass=NullPool,
    )
    try:
        async with engine.begin() as connection:
            await connection.run_sync(_migrate)
    finally:
        await engine.dispose()


def _migrate(connection: Connection) -> None:
    connection.execute(text(f"SELECT pg_advisory_xact_lock({LOCK})"))
    connection.execute(text("CREATE SCHEMA IF NOT EXISTS gateway"))
    config = _config()
    config.attributes["connection"] = connection
    command.upgrade(config, "head")
    connection.execute(
        text(
            "INSERT INTO gateway.installation (key_secret) VALUES (:secret) ON CONFLICT DO NOTHING"
        ),
        {"secret": secrets.token_bytes(32)},
    )
    connection.execute(text("SELECT gateway.ensure_partitions()"))
