"""What every migration does: run the SQL file beside it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from alembic import op


def run_beside(migration: str) -> None:
    """Run the SQL of a migration, which names itself by its `__file__`."""
    script = Path(migration).with_suffix(".sql").read_text(encoding="utf-8")
    # Through the driver itself: a prepared statement holds one command only.
    driver: Any = op.get_bind().connection.dbapi_connection
    driver.run_async(lambda connection: connection.execute(script))
