"""Join tokens, and the machines that joined."""

import sqlalchemy as sa
from alembic import op

from hostler.storage.tables import Text

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "tokens",
        sa.Column("token_id", Text, primary_key=True),
        sa.Column("created_at_s", sa.Float, nullable=False),
        sa.Column("expires_at_s", sa.Float, nullable=False),
        sa.Column("body", sa.Text, nullable=False),
    )
    op.create_table(
        "hosts",
        sa.Column("host_id", Text, primary_key=True),
        sa.Column("token_id", Text, nullable=False),
        sa.Column("joined_at_s", sa.Float, nullable=False),
        sa.Column("removed_at_s", sa.Float),
        sa.Column("body", sa.Text, nullable=False),
    )
