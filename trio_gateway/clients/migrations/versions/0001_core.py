"""Tenants, keys, revocations, models, the ledger and its sums, the audit log."""

from trio_gateway.clients.migrations.scripts import run_beside

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Run the SQL file beside this one."""
    run_beside(__file__)
