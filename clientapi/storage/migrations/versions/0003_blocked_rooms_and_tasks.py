"""blocked rooms, tasks about rooms."""

import sqlalchemy as sa
from alembic import op

revision = '0003'
down_revision = '0002'
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Go forward."""
    op.create_table('blocked_rooms',
    sa.Column('room_id', sa.Text(), nullable=False, comment='nobody of ours may join or make it'),
    sa.Column('blocker', sa.Text(), nullable=False, comment='the administrator'),
    sa.Column('blocked_ms', sa.BigInteger(), nullable=False),
    sa.PrimaryKeyConstraint('room_id', name=op.f('pk_blocked_rooms'))
    )
    op.create_table('room_tasks',
    sa.Column('task_id', sa.Text(), nullable=False, comment='random'),
    sa.Column('kind', sa.Text(), nullable=False, comment='purge_history, delete_room'),
    sa.Column('room_id', sa.Text(), nullable=False),
    sa.Column('request_json', sa.LargeBinary(), nullable=False, comment='what was asked for'),
    sa.Column('result_json', sa.LargeBinary(), nullable=False, comment='what was done so far, an object'),
    sa.Column('status', sa.Text(), nullable=False, comment='active, complete, failed'),
    sa.Column('error', sa.Text(), nullable=False, comment='why it failed; empty: it did not'),
    sa.Column('not_before_ms', sa.BigInteger(), nullable=False, comment='next try; while somebody works, the end of the lease'),
    sa.Column('attempts', sa.Integer(), nullable=False),
    sa.Column('created_ms', sa.BigInteger(), nullable=False, comment='long after the end the row is cleared away'),
    sa.PrimaryKeyConstraint('task_id', name=op.f('pk_room_tasks'))
    )
    op.create_index('ix_room_tasks_due', 'room_tasks', ['status', 'not_before_ms'], unique=False)
    op.create_index('ix_reports_reporter', 'reports', ['reporter'], unique=False)
    op.create_index('ix_room_tasks_room', 'room_tasks', ['room_id'], unique=False)
