"""Who leads when several controllers share a database, and who did."""

import sqlalchemy as sa
from alembic import op

from hostler.storage.tables import Text, Whole

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "leaderships",
        sa.Column("number", Whole, primary_key=True, autoincrement=False),
        sa.Column("owner", Text, nullable=False),
        sa.Column("name", Text, nullable=False),
        sa.Column("taken_at_s", sa.Float, nullable=False),
        sa.Column("renewed_at_s", sa.Float, nullable=False),
        sa.Column("ended_at_s", sa.Float),
        sa.Column("body", sa.Text, nullable=False),
    )
