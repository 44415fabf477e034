"""An index, so that the events of one model are found without reading all."""

from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_index("events_by_model", "events", ["model", "seq"])
