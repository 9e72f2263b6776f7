"""Refusals before admission, on their way to `gateway.audit_log`.

Whoever refuses a call never waits for this and never sees it fail: `record` only counts.
Identical refusals share a row for a minute. A row may count one refusal twice where the
answer to a COMMIT was lost; it never counts one less, but for what did not fit the bound,
and that is counted as well, without its details.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import trio

from trio_gateway.core.errors import StoreUnavailable

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from trio_gateway.clients.postgres import Connection, Postgres

BOUND = 2000  # different refusals waiting, and rows remembered
PATH_LENGTH = 200
PAUSE = 0.25  # seconds between two groups
WRITE_LIMIT = 2.0  # seconds for one group, also while being cancelled
RETRY = 0.5  # seconds before PostgreSQL is tried again
ROW_SPAN = timedelta(minutes=1)

_INSERT = """
INSERT INTO gateway.audit_log
    (at, last_at, code, status_code, method, path, client, tenant_id, key_id, request_id, count)
SELECT at, last_at, code, status_code, method, path, client, tenant_id, key_id, request_id, count
FROM unnest($1::timestamptz[], $2::timestamptz[], $3::text[], $4::int[], $5::text[], $6::text[],
    $7::text[], $8::text[], $9::text[], $10::text[], $11::bigint[]) WITH ORDINALITY
    AS u(at, last_at, code, status_code, method, path, client, tenant_id, key_id, request_id,
         count, place)
ORDER BY place RETURNING id, at
"""
_UPDATE = """
UPDATE gateway.audit_log a SET count = a.count + u.count, last_at = greatest(a.last_at, u.last_at)
FROM unnest($1::bigint[], $2::timestamptz[], $3::timestamptz[], $4::bigint[])
    AS u(id, at, last_at, count)
WHERE a.id = u.id AND a.at = u.at
"""


@dataclass(frozen=True, slots=True)
class Refusal:
    """One call that was turned away: `code` and `status` as answered, `path` as it came."""

    code: str
    status: int
    method: str
    path: str
    request_id: str
    client: str | None = None
    tenant_id: str | None = None
    key_id: str | None = None


OVERFLOW = Refusal("audit_overflow", 0, "", "", "")


@dataclass(slots=True)
class _Tally:
    """How often one refusal came, and its first and last time."""

    refusal: Refusal
    first: datetime
    last: datetime
    count: int = 1


@dataclass(frozen=True, slots=True)
class _Written:
    """Where the repeats of a refusal are added to."""

    id: int
    at: datetime


class AuditLog:
    """Counts refusals now and writes them soon; `run` must be running for the second."""

    def __init__(
        self,
        postgres: Postgres,
        *,
        bound: int = BOUND,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        """Hold at most `bound` different refusals, and one more for what does not fit."""
        self._postgres = postgres
        self._bound = bound
        self._now = now
        self._waiting: dict[Refusal, _Tally] = {}
        self._rows: OrderedDict[Refusal, _Written] = OrderedDict()
        self._wake = trio.Event()
        self._writing = trio.Lock()

    @property
    def waiting(self) -> int:
        """How many refusals are counted and not yet written."""
        return sum(tally.count for tally in self._waiting.values())

    def record(self, refusal: Refusal) -> None:
        """Count a refusal; never waits, never raises."""
        now = self._now()
        refusal = _clean(refusal)
        self._add(_same(refusal), _Tally(refusal, now, now))
        self._wake.set()

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Write what comes in, in groups, for ever; what PostgreSQL cannot take now waits."""
        task_status.started()
        while True:
            await self._wake.wait()
            self._wake = trio.Event()
            if not await self._written():
                self._wake.set()
                await trio.sleep(RETRY)
            await trio.sleep(PAUSE)

    async def flush(self) -> int:
        """Try once to write what is left; return how many refusals could not be written."""
        return 0 if await self._written() else self.waiting

    async def _written(self) -> bool:
        """Write what is waiting; a cancel waits for the write, so that nothing counts twice."""
        with trio.move_on_after(WRITE_LIMIT, shield=True):
            try:
                await self._write()
            except StoreUnavailable:
                return False
            return True
        return False

    async def _write(self) -> None:
        async with self._writing:
            if not self._waiting:
                return
            group, self._waiting = self._waiting, {}
            written = False
            try:
                self._forget_old_rows()
                fresh = {same: tally for same, tally in group.items() if same not in self._rows}
                repeats = [
                    (self._rows[same], tally) for same, tally in group.items() if same not in fresh
                ]
                rows = await self._postgres.transact(_store, list(fresh.values()), repeats)
                written = True
            finally:
                if not written:
                    self._keep(group)
            self._rows.update(zip(fresh, rows, strict=True))
            while len(self._rows) > self._bound:
                self._rows.popitem(last=False)

    def _keep(self, group: dict[Refusal, _Tally]) -> None:
        """Put a group that was not written back, before what came since."""
        since, self._waiting = self._waiting, group
        for same, tally in since.items():
            self._add(same, tally)

    def _add(self, same: Refusal, tally: _Tally) -> None:
        known = self._waiting.get(same)
        if known is None and len(self._waiting) >= self._bound:
            same, tally = OVERFLOW, replace(tally, refusal=OVERFLOW)
            known = self._waiting.get(same)
        if known is None:
            self._waiting[same] = tally
        else:
            known.count += tally.count
            known.last = max(known.last, tally.last)

    def _forget_old_rows(self) -> None:
        oldest = self._now() - ROW_SPAN
        while self._rows and next(iter(self._rows.values())).at < oldest:
            self._rows.popitem(last=False)


async def _store(
    connection: Connection, fresh: Sequence[_Tally], repeats: Sequence[tuple[_Written, _Tally]]
) -> list[_Written]:
    if repeats:
        await connection.execute(
            _UPDATE,
            [row.id for row, _ in repeats],
            [row.at for row, _ in repeats],
            [tally.last for _, tally in repeats],
            [tally.count for _, tally in repeats],
        )
    if not fresh:
        return []
    refusals = [tally.refusal for tally in fresh]
    rows = await connection.fetch(
        _INSERT,
        [tally.first for tally in fresh],
        [tally.last for tally in fresh],
        [refusal.code for refusal in refusals],
        [refusal.status for refusal in refusals],
        [refusal.method for refusal in refusals],
        [refusal.path for refusal in refusals],
        [refusal.client for refusal in refusals],
        [refusal.tenant_id for refusal in refusals],
        [refusal.key_id for refusal in refusals],
        [refusal.request_id for refusal in refusals],
        [tally.count for tally in fresh],
    )
    return [_Written(row["id"], row["at"]) for row in sorted(rows, key=lambda row: row["id"])]


def _same(refusal: Refusal) -> Refusal:
    """Return what identical refusals have in common."""
    return replace(refusal, request_id="")


def _clean(refusal: Refusal) -> Refusal:
    return replace(
        refusal,
        method=_printable(refusal.method, 20),
        path=_printable(refusal.path, PATH_LENGTH),
        client=None if refusal.client is None else _printable(refusal.client, 100),
    )


def _printable(text: str, length: int) -> str:
    """Keep a caller's bytes from ruling a terminal, or a row's size."""
    return "".join(c if c.isprintable() else "?" for c in text[:length])
