"""One command's time with the installation: stores opened, errors turned into sentences."""

from __future__ import annotations

import signal
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar
from urllib.parse import parse_qs, urlsplit

import trio

from trio_gateway.cli.addresses import Addresses, find
from trio_gateway.cli.door import Failure
from trio_gateway.clients.bridge import open_bridge
from trio_gateway.clients.postgres import NotMigrated, Postgres, Unstorable, open_postgres
from trio_gateway.core.causes import first_of
from trio_gateway.core.errors import CallerError, StoreUnavailable
from trio_gateway.logs import configure
from trio_gateway.pipeline.books import Books, books_of
from trio_gateway.services.account_rows import NotFound, Refused
from trio_gateway.services.tenant_rows import read_installation_secret
from trio_gateway.services.tenants import Tenants

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
    from pathlib import Path

T = TypeVar("T")

ACTOR = "cli"
# What is an argument in some place, so that no option of the name need be there.
ARGUMENTS = {None, "name", "key", "admin", "webhook"}
OPTIONS = {"expires_at": "expires"}  # where they are not called as their columns


@dataclass(frozen=True, kw_only=True)
class Desk(Books):
    """What a command works with: the books, the stores and where they are."""

    tenants: Tenants
    postgres: Postgres
    addresses: Addresses


def run(data_dir: Path | None, operation: Callable[[Desk], Awaitable[T]]) -> T:
    """Open a desk, run the operation, close it; raises Failure with one sentence."""
    addresses = find(data_dir)
    url = addresses.required_database_url()
    try:
        with interruptible():
            return trio.run(_sit, addresses, url, operation)
    except Exception as error:
        first = first_of(error)
        sentence = explained(first, url)
        if sentence is None:
            raise
        raise Failure(sentence) from first


@contextmanager
def interruptible() -> Iterator[None]:
    """Let Ctrl-C end the process where it stands; PostgreSQL rolls back what was not committed.

    A KeyboardInterrupt that is raised inside trio-asyncio's loop can leave it waiting for ever.
    Logs stay away from stdout, which holds the answer; what went wrong is said in a sentence.
    """
    configure("error")
    before = signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


async def _sit(addresses: Addresses, url: str, operation: Callable[[Desk], Awaitable[T]]) -> T:
    async with _open(addresses, url) as desk:
        return await operation(desk)


@asynccontextmanager
async def _open(addresses: Addresses, url: str) -> AsyncIterator[Desk]:
    async with open_bridge() as bridge, open_postgres(bridge, url, size=2) as postgres:
        try:
            secret = await read_installation_secret(postgres)
        except ValueError as error:
            # the address is read at the first use, and an error may quote pieces of it
            raise ValueError("DATABASE_URL is not a PostgreSQL address") from error
        hosts = addresses.settings.webhook_hosts
        yield Desk(
            **vars(books_of(postgres, secret, ACTOR, webhook_hosts=hosts)),
            tenants=Tenants(postgres, secret),
            postgres=postgres,
            addresses=addresses,
        )


def explained(error: BaseException, url: str) -> str | None:
    """Say in one sentence what went wrong; None for what was not foreseen."""
    if isinstance(error, Refused):
        if error.param in ARGUMENTS or isinstance(error, NotFound):
            return str(error)
        option = OPTIONS.get(str(error.param), str(error.param)).replace("_", "-")
        return f"--{option}: {error}"
    if isinstance(error, NotMigrated):
        return str(error)
    if isinstance(error, Unstorable):
        return f"failed: {error}"  # the text of its cause quotes the row
    if isinstance(error, StoreUnavailable):
        cause = str(error.__cause__ or "").splitlines()
        return f"PostgreSQL cannot be used at {place(url)}" + (f": {cause[0]}" if cause else "")
    if isinstance(error, CallerError):
        return f"{error.param}: {error.message}" if error.param not in {None, "id"} else str(error)
    # the clients' own word for an address that is none
    unusable = isinstance(error, ValueError) and "_URL is not" in str(error)
    return str(error) if unusable or isinstance(error, Failure) else None


def place(url: str) -> str:
    """Name a store by its address without user, password and options."""
    try:
        parts = urlsplit(url)
    except ValueError:
        return "the address given"
    if "@" in url and "@" not in parts.netloc:
        # a password with `#`, `?` or `/` in it: what looks like the host is not
        return "the address given"
    folder = parse_qs(parts.query).get("host", [""])[0]
    path = parts.path if parts.scheme else ""
    host = parts.netloc.rpartition("@")[2] or folder
    return f"{host}{path}" if host or path else "the address given"
