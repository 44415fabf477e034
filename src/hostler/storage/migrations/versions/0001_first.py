"""Deployments, launches, keys, events and counters."""

import sqlalchemy as sa
from alembic import op

from hostler.storage.tables import Text, Whole

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "deployments",
        sa.Column("name", Text, primary_key=True),
        sa.Column("worker_type", Text, primary_key=True),
        sa.Column("body", sa.Text, nullable=False),
    )
    op.create_table(
        "launches",
        sa.Column("instance_id", Text, primary_key=True),
        sa.Column("body", sa.Text, nullable=False),
    )
    op.create_table(
        "keys",
        sa.Column("key_id", Text, primary_key=True),
        sa.Column("created_at_s", sa.Float, nullable=False),
        sa.Column("revoked", sa.Boolean, nullable=False),
        sa.Column("body", sa.Text, nullable=False),
    )
    op.create_table(
        "events",
        sa.Column("seq", Whole, primary_key=True),
        sa.Column("model", Text, nullable=False),
        sa.Column("body", sa.Text, nullable=False),
        sqlite_autoincrement=True,
    )
    op.create_table(
        "counters",
        sa.Column("name", Text, primary_key=True),
        sa.Column("value", Whole, nullable=False),
    )
