"""An import's events are stored as they come; what is staged of it is its state, page by page."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    """Make the table, and room for the number that a room will have."""
    op.add_column(
        "import_job",
        sa.Column(
            "room_nid",
            sa.BigInteger(),
            server_default="0",
            nullable=False,
            comment="of its events; `room` may have no such row before the commit. 0: none yet",
        ),
    )
    op.create_table(
        "import_page",
        sa.Column("import_id", sa.Text(), nullable=False),
        sa.Column("page", sa.Integer(), autoincrement=False, nullable=False, comment="from 1, in order"),
        sa.Column(
            "state",
            sa.LargeBinary(),
            nullable=False,
            comment="packed (key id, event number, membership) triples: entries of the room's state",
        ),
        sa.PrimaryKeyConstraint("import_id", "page", name=op.f("pk_import_page")),
        sqlite_with_rowid=False,
    )
