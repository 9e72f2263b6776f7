"""Files, batches and their lines."""

from trio_gateway.clients.migrations.scripts import run_beside

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Run the SQL file beside this one."""
    run_beside(__file__)
