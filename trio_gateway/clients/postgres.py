"""PostgreSQL through asyncpg: a pool that reconnects by itself, and LISTEN.

Write a store operation as one asyncio function over a connection and `run` it: the crossing
is paid once for the operation, not once for each query.
"""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager, contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, Protocol, TypeVar, cast

import asyncpg
import trio

from trio_gateway.clients.instants import read_instant, write_instant
from trio_gateway.core.errors import StoreUnavailable

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Sequence

    from trio_gateway.clients.bridge import Bridge

    Connection = asyncpg.pool.PoolConnectionProxy[asyncpg.Record]

T = TypeVar("T")

SCHEMES = ("postgresql://", "postgres://")
CONNECT_LIMIT = 5.0  # seconds to open, or to wait for, a connection
COMMAND_LIMIT = 10.0  # seconds for one statement
LISTEN_LIMIT = 5.0  # seconds for LISTEN

# Whether whoever waits is let go at a cancel, before the cancel has come to its end; see `within`.
_let_go: ContextVar[bool] = ContextVar("let_go", default=False)


class BadAddress(ValueError):
    """DATABASE_URL is no address of a PostgreSQL; the text never holds it."""


class Duplicate(Exception):
    """A unique constraint refused the row; the argument is the constraint's name."""


class Missing(Exception):
    """A foreign key refused the row; the argument is the constraint's name."""


class Unstorable(Exception):
    """A value or a row that PostgreSQL will never take; the argument is its error's name."""


class NotMigrated(StoreUnavailable):
    """A table, column or function is missing: the migrations have not run.

    Its text is for operators; callers are told no more than of any store out of reach.
    """

    def __str__(self) -> str:
        """Say what to do."""
        return "the database is not migrated; run `trio-gateway migrate`"


class InsufficientPrivilege(StoreUnavailable):
    """The database's user may not do this, for now; its text is for operators."""

    def __str__(self) -> str:
        """Say who is meant."""
        return "the user of DATABASE_URL lacks a privilege"


class Overdue(StoreUnavailable):
    """Raised by `within`: no answer came in time."""


@contextmanager
def mapped_errors() -> Iterator[None]:
    """Rename asyncpg's errors: out of reach is StoreUnavailable, the rest is named above."""
    try:
        yield
    except asyncpg.UniqueViolationError as error:
        raise Duplicate(error.constraint_name or "") from error
    except (asyncpg.ForeignKeyViolationError, asyncpg.RestrictViolationError) as error:
        raise Missing(error.constraint_name or "") from error
    except (asyncpg.DataError, asyncpg.IntegrityConstraintViolationError) as error:
        raise Unstorable(type(error).__name__) from error
    except asyncpg.InsufficientPrivilegeError as error:
        raise InsufficientPrivilege from error
    except (
        asyncpg.UndefinedTableError,
        asyncpg.UndefinedColumnError,
        asyncpg.UndefinedFunctionError,
        asyncpg.InvalidSchemaNameError,
    ) as error:
        raise NotMigrated from error
    except (
        asyncpg.PostgresConnectionError,
        asyncpg.OperatorInterventionError,
        asyncpg.TransactionRollbackError,
        asyncpg.PostgresSystemError,
        asyncpg.InsufficientResourcesError,
        asyncpg.InternalClientError,
        asyncpg.InterfaceError,
        asyncpg.ReadOnlySQLTransactionError,
        asyncpg.InvalidAuthorizationSpecificationError,
        asyncpg.InvalidCatalogNameError,
        asyncpg.ObjectNotInPrerequisiteStateError,  # the database takes no connections for now
        OSError,
        TimeoutError,
    ) as error:
        raise StoreUnavailable from error


@contextmanager
def within(limit: float) -> Iterator[None]:
    """Bound all that is asked inside to `limit` seconds, or raise Overdue.

    A cancel is no bound by itself: a server that hangs answers to it as little as to a query, and
    asyncpg waits for that. In here whoever waits is let go at once, whatever state the server is
    in; what becomes of the query is seen to in asyncio.
    """
    before = _let_go.set(True)
    try:
        with trio.fail_after(limit):
            yield
    except trio.TooSlowError:
        raise Overdue from None
    finally:
        _let_go.reset(before)


class Reads(Protocol):
    """Whoever reads rows: PostgreSQL, or one connection with its snapshot."""

    async def fetch(self, query: str, *args: Any) -> Sequence[Any]:
        """Return all rows of one query."""


class Postgres:
    """A pool of connections. Errors raised: StoreUnavailable, Duplicate, Missing, Unstorable."""

    def __init__(self, bridge: Bridge, pool: asyncpg.Pool[asyncpg.Record]) -> None:
        """Built by `open_postgres`."""
        self._bridge = bridge
        self._pool = pool

    async def run(self, operation: Callable[..., Coroutine[Any, Any, T]], *args: Any) -> T:
        """Run `operation(connection, *args)`, an asyncio function, on one connection."""

        async def on_connection() -> T:
            async with self._pool.acquire(timeout=CONNECT_LIMIT) as connection:
                return await operation(connection, *args)

        return await self._cross(on_connection)

    async def transact(self, operation: Callable[..., Coroutine[Any, Any, T]], *args: Any) -> T:
        """As `run`, inside one transaction."""

        async def inside(connection: Connection) -> T:
            async with connection.transaction():
                return await operation(connection, *args)

        return await self.run(inside)

    async def fetch(self, query: str, *args: Any) -> Sequence[asyncpg.Record]:
        """Return all rows of one query."""
        return await self._cross(self._fetch, query, args)

    async def fetch_one(self, query: str, *args: Any) -> asyncpg.Record | None:
        """Return the first row, or None."""
        rows = await self.fetch(query, *args)
        return rows[0] if rows else None

    async def glance(self, limit: float, query: str, *args: Any) -> asyncpg.Record | None:
        """As `fetch_one`, `within` so many seconds."""
        with within(limit):
            return await self.fetch_one(query, *args)

    async def _cross(self, operation: Callable[..., Coroutine[Any, Any, T]], *args: Any) -> T:
        with mapped_errors():
            if _let_go.get():
                return await self._bridge.run(_left, operation, *args)
            return await self._bridge.run(operation, *args)

    async def _fetch(self, query: str, args: tuple[Any, ...]) -> Sequence[asyncpg.Record]:
        async with self._pool.acquire(timeout=CONNECT_LIMIT) as connection:
            return await connection.fetch(query, *args)


async def _left(operation: Callable[..., Coroutine[Any, Any, T]], *args: Any) -> T:
    """Run an operation; a cancel is passed on to it, and its end not waited for."""
    task = asyncio.ensure_future(_ended(operation, *args))
    try:
        await asyncio.wait({task})
    finally:
        task.cancel()  # means nothing to one that is over
    result, error = task.result()
    if error is not None:
        raise error
    return cast("T", result)


async def _ended(
    operation: Callable[..., Coroutine[Any, Any, T]], *args: Any
) -> tuple[T | None, Exception | None]:
    """Return how it ended: the loop raises a failure that nobody waits for."""
    try:
        return await operation(*args), None
    except Exception as error:  # noqa: BLE001 - raised above, while somebody waits
        return None, error


@asynccontextmanager
async def open_postgres(bridge: Bridge, dsn: str, size: int = 8) -> AsyncIterator[Postgres]:
    """Hold a pool of up to `size` connections, opened when first needed.

    An unusable DSN raises ValueError with one sentence; an unreachable server shows at first use.
    """
    try:
        pool = await bridge.run(_create_pool, dsn, size)
    except (ValueError, TypeError, asyncpg.ClientConfigurationError) as error:
        raise BadAddress("DATABASE_URL is not a PostgreSQL address") from error
    try:
        yield Postgres(bridge, pool)
    finally:
        # Nothing that matters is in flight here; a connection wedged by a dead server must
        # not hold the exit.
        pool.terminate()


async def _create_pool(dsn: str, size: int) -> asyncpg.Pool[asyncpg.Record]:
    if not dsn.startswith(SCHEMES):
        raise ValueError  # the pool itself would look at it only when it connects
    return await asyncpg.create_pool(
        dsn,
        min_size=0,
        max_size=size,
        init=_read_instants,
        timeout=CONNECT_LIMIT,
        command_timeout=COMMAND_LIMIT,
    )


async def _read_instants(connection: asyncpg.Connection[asyncpg.Record]) -> None:
    """Have every timestamptz be an instant in UTC, also where asyncpg knows none."""
    await connection.set_type_codec(
        "timestamptz",
        schema="pg_catalog",
        encoder=write_instant,
        decoder=read_instant,
        format="tuple",
    )


class Listener:
    """One connection that listens; it must not pass through a transaction pooler."""

    def __init__(self, bridge: Bridge, connection: asyncpg.Connection[asyncpg.Record]) -> None:
        """Built by `open_listener`."""
        self._bridge = bridge
        self._connection = connection

    async def beat(self, limit: float) -> None:
        """Prove the connection alive within `limit` seconds, or raise StoreUnavailable."""
        with mapped_errors():
            await self._bridge.run(self._beat, limit)

    async def _beat(self, limit: float) -> None:
        await self._connection.fetchval("SELECT 1", timeout=limit)


@asynccontextmanager
async def open_listener(
    bridge: Bridge,
    dsn: str,
    channel: str,
    deliver: Callable[[str], None],
    lost: Callable[[], None],
) -> AsyncIterator[Listener]:
    """LISTEN on `channel`; `deliver(payload)` and `lost()` are called inside the event loop."""

    async def attach() -> asyncpg.Connection[asyncpg.Record]:
        connection = await connect(dsn, LISTEN_LIMIT)
        try:
            connection.add_termination_listener(lambda _: lost())
            await connection.add_listener(channel, lambda *message: deliver(str(message[3])))
        except BaseException:
            connection.terminate()
            raise
        return connection

    with mapped_errors():
        connection = await bridge.run(attach)
    try:
        yield Listener(bridge, connection)
    finally:
        connection.terminate()


async def connect(dsn: str, limit: float | None = None) -> asyncpg.Connection[asyncpg.Record]:
    """Open one connection; an asyncio function, for tools without a pool.

    `limit` is in seconds, for each statement that names no other.
    """
    return await asyncpg.connect(dsn, timeout=CONNECT_LIMIT, command_timeout=limit)


async def run_once(dsn: str, query: str, *args: Any) -> Sequence[asyncpg.Record]:
    """Run one query on a connection of its own; an asyncio function, for tools without a pool."""
    with mapped_errors():
        connection = await connect(dsn)
        try:
            return await connection.fetch(query, *args)
        finally:
            await connection.close()  # noqa: ASYNC102 - this runs in asyncio, not in Trio
