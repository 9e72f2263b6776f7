"""What the operator decided for each model: blocks, weights, pinned sizes and digests."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

from trio_gateway.core.domain import ModelPolicy
from trio_gateway.core.models import InvalidModelName, canonical
from trio_gateway.services.account_rows import Row, check_seen, write_event

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from trio_gateway.clients.postgres import Connection, Postgres

UNSET: dict[str, Any] = {"blocked": False, "milli_weight": 1000, "num_ctx": None, "digest": None}
COLUMNS = tuple(UNSET)
# Of one model, also before it has a row that can be locked.
_LOCK = "SELECT pg_advisory_xact_lock(hashtextextended('models ' || $1, 0))"


class Policies:
    """The policies as they were at the last `refresh`; asking never waits."""

    def __init__(self, postgres: Postgres) -> None:
        """Know nothing yet: call `refresh` before the first call is served."""
        self._postgres = postgres
        self._policies: dict[str, ModelPolicy] = {}
        self.blocked: frozenset[str] = frozenset()

    async def refresh(self) -> None:
        """Read them all; on StoreUnavailable or NotMigrated the last ones stand."""
        rows = await self._postgres.fetch("SELECT * FROM gateway.models ORDER BY name")
        self._policies = _by_canonical_name(rows)
        self.blocked = frozenset(p.name for p in self._policies.values() if p.blocked)

    def policy(self, name: str) -> ModelPolicy:
        """Return the policy of a canonical name; the default where none was set."""
        return self._policies.get(name) or ModelPolicy(name)


class ModelBook:
    """The operator's book of policies; each change and its record are one transaction.

    Names are canonical. Errors raised: Overtaken, StoreUnavailable, NotMigrated.
    """

    def __init__(self, postgres: Postgres, actor: str) -> None:
        """`actor` is who the record names."""
        self._postgres = postgres
        self._actor = actor

    async def listing(self) -> list[Row]:
        """Return every policy that was set, by name."""
        rows = await self._postgres.fetch("SELECT * FROM gateway.models ORDER BY name")
        return [dict(row) for row in rows]

    async def set(
        self,
        name: str,
        values: Mapping[str, Any],
        action: str,
        seen: Mapping[str, Any] | None = None,
    ) -> Row:
        """Change some of COLUMNS for one model and return its row.

        A policy that says nothing any more is not kept.
        `seen` holds columns as whoever changes them saw them; see `check_seen`.
        """
        if not values or values.keys() - set(COLUMNS):
            raise TypeError("values must be some of COLUMNS")
        return await self._postgres.transact(self._set, name, values, action, seen or {})

    async def _set(
        self,
        connection: Connection,
        name: str,
        values: Mapping[str, Any],
        action: str,
        seen: Mapping[str, Any],
    ) -> Row:
        await connection.execute(_LOCK, name)
        before = await connection.fetchrow(
            "SELECT * FROM gateway.models WHERE name = $1 FOR UPDATE", name
        )
        check_seen(dict(before or UNSET), seen, values)
        columns = ", ".join(values)
        places = ", ".join(f"${place}" for place in range(2, len(values) + 2))
        changes = ", ".join(f"{column} = excluded.{column}" for column in values)
        rows = await connection.fetch(
            f"INSERT INTO gateway.models (name, {columns}) VALUES ($1, {places})"  # noqa: S608
            f" ON CONFLICT (name) DO UPDATE SET {changes}, updated_at = now() RETURNING *",
            name,
            *values.values(),
        )
        row = dict(rows[0])
        if all(row[column] == usual for column, usual in UNSET.items()):
            await connection.execute("DELETE FROM gateway.models WHERE name = $1", name)
        await write_event(
            connection, (self._actor, action, name), dict(before) if before else None, row
        )
        return row


def _by_canonical_name(rows: Sequence[Any]) -> dict[str, ModelPolicy]:
    """Read the rows; two spellings of one model are one policy, and a block beats its lack."""
    policies: dict[str, ModelPolicy] = {}
    for row in rows:
        # A name that nothing can be called by is written by hand; it concerns no model.
        with contextlib.suppress(InvalidModelName):
            name = canonical(row["name"]).full
            twin = policies.get(name)
            policies[name] = ModelPolicy(
                name=name,
                blocked=row["blocked"] or (twin is not None and twin.blocked),
                milli_weight=row["milli_weight"],
                num_ctx=row["num_ctx"],
                digest=row["digest"],
            )
    return policies
