"""The append-only truth: one row for every admitted call, whoever writes it first."""

from __future__ import annotations

from importlib.resources import files
from typing import TYPE_CHECKING, Any

import orjson
import structlog

from trio_gateway.clients.postgres import Unstorable
from trio_gateway.core.domain import Basis, LedgerRow, Outcome

if TYPE_CHECKING:
    from collections.abc import Sequence

    from trio_gateway.clients.postgres import Postgres

log = structlog.get_logger()

RECORD = (files("trio_gateway.services.ledger") / "record.sql").read_text(encoding="utf-8")
FIND = """
SELECT request_id, tenant_id, key_id, endpoint, model, status_code, outcome, basis, prompt_tokens,
    completion_tokens, charged_tokens, held_tokens, backend,
    (extract(epoch FROM started_at) * 1000000)::bigint AS started_us, ttft_ms, duration_ms, batch_id
FROM gateway.ledger WHERE request_id = ANY($1)
"""


class Ledger:
    """Rows in PostgreSQL. Raises StoreUnavailable."""

    def __init__(self, postgres: Postgres) -> None:
        """Take the pool."""
        self._postgres = postgres

    async def write(self, rows: Sequence[LedgerRow]) -> list[LedgerRow]:
        """Insert rows with their sums and return those stored; an earlier row wins.

        Safe to repeat when the answer to the commit was lost. A row that PostgreSQL will never
        take is logged, and returned as if it were stored: whoever settles by it closes its
        account, and no other row waits for it.
        """
        try:
            return await self._postgres.run(_write, rows)
        except Unstorable as refused:
            if len(rows) == 1:
                _give_up(rows[0], str(refused))
                return list(rows)
        return [stored for row in rows for stored in await self.write([row])]

    async def find(self, request_ids: Sequence[str]) -> dict[str, LedgerRow]:
        """Return the stored rows of these requests, by request id."""
        found = await self._postgres.fetch(FIND, list(request_ids))
        return {row["request_id"]: _row(row) for row in found}


async def _write(connection: Any, rows: Sequence[LedgerRow]) -> list[LedgerRow]:
    given = orjson.dumps(list(rows)).decode()
    added = {record["request_id"] for record in await connection.fetch(RECORD, given)}
    if len(added) == len(rows):
        return list(rows)
    missing = [row.request_id for row in rows if row.request_id not in added]
    stored = {
        record["request_id"]: _row(record) for record in await connection.fetch(FIND, missing)
    }
    return [stored.get(row.request_id, row) for row in rows]


def _give_up(row: LedgerRow, reason: str) -> None:
    log.error(
        "ledger_row_refused",
        reason=reason,
        request_id=row.request_id,
        tenant_id=row.tenant_id,
        key_id=row.key_id,
        charged_tokens=row.charged_tokens,
        started_us=row.started_us,
    )


def _row(record: Any) -> LedgerRow:
    fields = dict(record)
    fields["outcome"] = Outcome(fields["outcome"])
    fields["basis"] = Basis(fields["basis"])
    return LedgerRow(**fields)
