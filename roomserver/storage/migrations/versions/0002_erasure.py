"""What is to go from the log is remembered until it is gone."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    """Make the table."""
    op.create_table(
        "erasure",
        sa.Column("partition", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column(
            "output_no",
            sa.BigInteger(),
            autoincrement=False,
            nullable=False,
            comment="message that told of the cause",
        ),
        sa.Column("room_id", sa.Text(), nullable=False),
        sa.Column(
            "event_ids",
            sa.LargeBinary(),
            nullable=False,
            comment="JSON array; empty: what `event` has no more",
        ),
        sa.Column("whole_room", sa.Boolean(), nullable=False, comment="all that was told before goes"),
        sa.Column(
            "input_sequence",
            sa.BigInteger(),
            nullable=False,
            comment="on INPUT the events stand up to here",
        ),
        sa.PrimaryKeyConstraint("partition", "output_no", name=op.f("pk_erasure")),
        sqlite_with_rowid=False,
    )
