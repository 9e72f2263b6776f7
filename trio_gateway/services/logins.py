"""Throttles logins by account and by address, over all machines."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from trio_gateway.clients.postgres import Postgres

SPAN = timedelta(minutes=15)
ACCOUNT_MOST = 10  # failures of one account, or of one address with one account, in a span
CLIENT_MOST = 30  # failures from one address
_WAIT = """
SELECT max(extract(epoch FROM since + $3::interval - now()))::float8 AS seconds
FROM gateway.login_failures WHERE since > now() - $3::interval
    AND ((scope = $1 AND failures >= $4) OR (scope = $2 AND failures >= $5))
"""
_COUNT = """
WITH gone AS (
    DELETE FROM gateway.login_failures
    WHERE since <= now() - $3::interval AND scope NOT IN ($1, $2)
)
INSERT INTO gateway.login_failures AS f (scope, failures) VALUES ($1, 1), ($2, 1)
ON CONFLICT (scope) DO UPDATE SET
    failures = CASE WHEN f.since > now() - $3::interval THEN f.failures + 1 ELSE 1 END,
    since = CASE WHEN f.since > now() - $3::interval THEN f.since ELSE now() END
"""


class Logins:
    """Counts failures. Errors raised: StoreUnavailable, NotMigrated."""

    def __init__(self, postgres: Postgres) -> None:
        """Nothing is read yet."""
        self._postgres = postgres

    async def wait(self, account: str, client: str | None) -> float:
        """Return how many seconds this account at this address has to wait; 0 for none."""
        row = await self._postgres.fetch_one(
            _WAIT, *_scopes(account, client), SPAN, ACCOUNT_MOST, CLIENT_MOST
        )
        return max(0.0, row["seconds"] or 0.0) if row else 0.0

    async def failed(self, account: str, client: str | None) -> None:
        """Count a failure."""
        await self._postgres.fetch(_COUNT, *_scopes(account, client), SPAN)

    async def succeeded(self, account: str, client: str | None) -> None:
        """Forget the failures of this account at this address."""
        await self._postgres.fetch(
            "DELETE FROM gateway.login_failures WHERE scope = $1", _scopes(account, client)[0]
        )


def _scopes(account: str, client: str | None) -> tuple[str, str]:
    # With the address in it, nobody elsewhere can lock an account.
    return f"account:{account}@{client or ''}", f"client:{client or ''}"
