"""The way from a command to the installation; what is heavy is imported on passing it."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

import click

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

    from trio_gateway.cli.options import Target
    from trio_gateway.cli.session import Desk

T = TypeVar("T")


class Failure(click.ClickException):
    """Raised for what was refused or failed; one line on stderr, exit code 1."""


def work(target: Target, operation: Callable[[Desk], Awaitable[T]]) -> T:
    """Run `operation(desk)` on the installation; every foreseen error becomes a Failure."""
    # trio, asyncpg and pydantic take 0.4 s to import, which --help need not pay
    from trio_gateway.cli.session import run  # noqa: PLC0415

    return run(target.data_dir, operation)


def database_url(data_dir: Path | None) -> str:
    """Return where PostgreSQL is; raises Failure."""
    # pydantic takes 0.2 s to import, which --help need not pay
    from trio_gateway.cli.addresses import find  # noqa: PLC0415

    return find(data_dir).required_database_url()
