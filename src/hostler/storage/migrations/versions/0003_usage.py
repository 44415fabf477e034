"""Usage by hour, key and model; and the last batch of each gateway, so that none counts twice."""

import sqlalchemy as sa
from alembic import op

from hostler.storage.tables import Text, Whole

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "usage",
        sa.Column("hour_s", Whole, primary_key=True),
        sa.Column("key_id", Text, primary_key=True),
        sa.Column("model", Text, primary_key=True),
        sa.Column("requests", Whole, nullable=False),
        sa.Column("failed", Whole, nullable=False),
        sa.Column("estimated", Whole, nullable=False),
        sa.Column("prompt_tokens", Whole, nullable=False),
        sa.Column("cached_tokens", Whole, nullable=False),
        sa.Column("completion_tokens", Whole, nullable=False),
    )
    op.create_table(
        "usage_sources",
        sa.Column("source", Text, primary_key=True),
        sa.Column("seq", Whole, nullable=False),
        sa.Column("seen_s", Whole, nullable=False),
    )
