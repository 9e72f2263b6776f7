"""Admins, their sessions, and failed logins."""

from trio_gateway.clients.migrations.scripts import run_beside

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Run the SQL file beside this one."""
    run_beside(__file__)
