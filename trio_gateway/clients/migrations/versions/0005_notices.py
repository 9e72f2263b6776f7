"""Temporary increases, notices of budgets near their end, and webhooks."""

from trio_gateway.clients.migrations.scripts import run_beside

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Run the SQL file beside this one."""
    run_beside(__file__)
