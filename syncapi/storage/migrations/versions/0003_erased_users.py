"""erased users."""

import sqlalchemy as sa
from alembic import op

revision = '0003'
down_revision = '0002'
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Go forward."""
    op.create_table('erased_user',
    sa.Column('user_id', sa.Text(), nullable=False),
    sa.Column('erased_ms', sa.BigInteger().with_variant(sa.Integer(), 'sqlite'), nullable=False, comment='when; milliseconds since 1970'),
    sa.PrimaryKeyConstraint('user_id', name=op.f('pk_erased_user'))
    )
