"""How often completing a join with partial state was tried, and when it is tried again."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    """Add the columns."""
    op.add_column(
        "join_job",
        sa.Column(
            "attempts",
            sa.Integer(),
            nullable=False,
            server_default="0",
            comment="tries to complete it that failed",
        ),
    )
    op.add_column(
        "join_job",
        sa.Column("next_try_ms", sa.BigInteger(), nullable=False, server_default="0", comment="0: now"),
    )
