"""aliases by creator."""

from alembic import op

revision = '0004'
down_revision = '0003'
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Go forward."""
    op.create_index('ix_aliases_creator', 'aliases', ['creator'], unique=False)
