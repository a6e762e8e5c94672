"""Since when the members of a room are known that was joined with partial state."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    """Add the column and its index."""
    op.add_column(
        "room",
        sa.Column(
            "whole_since",
            sa.BigInteger().with_variant(sa.Integer(), "sqlite"),
            nullable=False,
            server_default="0",
            comment="where its members came after a join with partial state; 2^63-1: not yet; 0: they never lacked",
        ),
    )
    op.create_index(
        "ix_room_whole_since",
        "room",
        ["whole_since"],
        unique=False,
        sqlite_where=sa.text("whole_since > 0"),
        postgresql_where=sa.text("whole_since > 0"),
    )
