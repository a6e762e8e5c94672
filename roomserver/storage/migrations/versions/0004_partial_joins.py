"""Rooms whose members are not all known yet, and snapshots that readers were referred to."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    """Add the column and the table."""
    op.add_column(
        "room",
        sa.Column(
            "partial_join",
            sa.BigInteger(),
            nullable=False,
            server_default="0",
            comment="the join whose state lacks members still; 0: the state is whole",
        ),
    )
    op.create_table(
        "told_snapshot",
        sa.Column(
            "snapshot_id",
            sa.BigInteger().with_variant(sa.Integer(), "sqlite"),
            autoincrement=False,
            nullable=False,
            comment="readers are referred to it",
        ),
        sa.Column("room_nid", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("snapshot_id", name=op.f("pk_told_snapshot")),
    )
    op.create_index("ix_told_snapshot_room_nid", "told_snapshot", ["room_nid"], unique=False)
