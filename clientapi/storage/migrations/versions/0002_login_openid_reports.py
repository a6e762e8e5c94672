"""login tokens, openid tokens, reports."""

import sqlalchemy as sa
from alembic import op

revision = '0002'
down_revision = '0001'
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Go forward."""
    for name, comment in (
        ('login_tokens', 'SHA-256 of the token; used once'),
        ('openid_tokens', 'SHA-256 of the token'),
    ):
        op.create_table(name,
        sa.Column('token_hash', sa.LargeBinary(length=32), nullable=False, comment=comment),
        sa.Column('user_id', sa.Text(), nullable=False),
        sa.Column('expires_ms', sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(['user_id'], ['users.user_id'], name=op.f(f'fk_{name}_user_id_users'), ondelete='CASCADE'),
        sa.PrimaryKeyConstraint('token_hash', name=op.f(f'pk_{name}'))
        )
        op.create_index(f'ix_{name}_expires', name, ['expires_ms'], unique=False)
    op.create_table('reports',
    sa.Column('report_id', sa.Text(), nullable=False, comment='random'),
    sa.Column('created_ms', sa.BigInteger(), nullable=False),
    sa.Column('reporter', sa.Text(), nullable=False),
    sa.Column('room_id', sa.Text(), nullable=False, comment='as the reporter names it; empty: a user is reported'),
    sa.Column('event_id', sa.Text(), nullable=False, comment='empty: the room, or a user'),
    sa.Column('user_id', sa.Text(), nullable=False, comment='empty: a room or an event is reported'),
    sa.Column('reason', sa.Text(), nullable=False),
    sa.Column('score', sa.Integer(), nullable=True, comment='-100 (most offensive) to 0; NULL: none given'),
    sa.PrimaryKeyConstraint('report_id', name=op.f('pk_reports'))
    )
    op.create_index('ix_reports_created', 'reports', ['created_ms'], unique=False)
