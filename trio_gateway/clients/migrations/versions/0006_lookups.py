"""Indexes by which operators look keys and changes up."""

from trio_gateway.clients.migrations.scripts import run_beside

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Run the SQL file beside this one."""
    run_beside(__file__)
