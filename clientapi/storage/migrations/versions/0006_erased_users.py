"""erased users."""

import sqlalchemy as sa
from alembic import op

revision = '0006'
down_revision = '0005'
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Go forward."""
    op.add_column('users', sa.Column('erased_ms', sa.BigInteger(), nullable=True, comment='when the owner had the content erased; NULL: not'))
