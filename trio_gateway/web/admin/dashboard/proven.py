"""Sessions that this process has proven of late: who may see the health while PostgreSQL is away.

The memory is small and short. It opens nothing but that page, and every change that comes in
empties it, since any may end a session.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio

from trio_gateway.core.officers import sha256_hex

if TYPE_CHECKING:
    from trio_gateway.services.sessions import Session

LIFE = 60.0  # seconds
MOST = 100  # sessions


class Proven:
    """Sessions by their ids, those proven last at the end."""

    def __init__(self) -> None:
        """Nobody is proven yet."""
        self._sessions: dict[str, tuple[Session, float]] = {}

    def __len__(self) -> int:
        """How many are remembered."""
        return len(self._sessions)

    def note(self, session: Session) -> None:
        """Remember a session that PostgreSQL has just confirmed."""
        self._sessions.pop(session.id, None)
        self._sessions[session.id] = (session, trio.current_time())
        while len(self._sessions) > MOST:
            del self._sessions[next(iter(self._sessions))]

    def forget(self, secret: str) -> None:
        """Forget the session behind a cookie: it is over."""
        self._sessions.pop(sha256_hex(secret), None)

    def clear(self) -> None:
        """Forget all."""
        self._sessions.clear()

    def find(self, secret: str) -> Session | None:
        """Return the session behind a cookie, if it was proven within LIFE."""
        session, at = self._sessions.get(sha256_hex(secret), (None, 0.0))
        return session if trio.current_time() - at < LIFE else None
