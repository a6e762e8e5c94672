"""annotations."""

import sqlalchemy as sa
from alembic import op

revision = '0005'
down_revision = '0004'
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Go forward."""
    op.create_table('annotations',
    sa.Column('annotation_hash', sa.LargeBinary(length=32), nullable=False, comment='SHA-256 of room, annotated event, sender, type and key: one of a kind that stands'),
    sa.Column('event_id', sa.Text(), nullable=False, comment='the annotation that was sent last'),
    sa.Column('device_id', sa.Text(), nullable=False, comment='the device that sent it'),
    sa.Column('txn_id', sa.Text(), nullable=False, comment='under which transaction; empty: none'),
    sa.PrimaryKeyConstraint('annotation_hash', name=op.f('pk_annotations'))
    )
