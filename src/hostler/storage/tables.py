"""The tables, and the names of their versions. A row is its keys and one JSON body of a core type.

A change here needs a migration in migrations/versions and its name at the end of HISTORY; a test
compares a migrated database with a new one, on SQLite and on PostgreSQL. `leaderships` never changes:
controllers of two versions must understand each other's; what is new goes into its body.
"""

import sqlalchemy as sa

from hostler.core.usage import Tokens

HISTORY = ("0001", "0002", "0003", "0004", "0005")  # every version ever released, oldest first
HEAD = HISTORY[-1]

# PostgreSQL's integers have 32 bits, and its texts are in the order of a language, where SQLite has
# 64 and the order of bytes. The migrations say the same.
Whole = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
Text = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")

metadata = sa.MetaData()

version = sa.Table(
    "alembic_version",
    metadata,
    sa.Column("version_num", sa.String(32), nullable=False),
    sa.PrimaryKeyConstraint("version_num", name="alembic_version_pkc"),
)

deployments = sa.Table(
    "deployments",
    metadata,
    sa.Column("name", Text, primary_key=True),
    sa.Column("worker_type", Text, primary_key=True),
    sa.Column("body", sa.Text, nullable=False),
)

launches = sa.Table(
    "launches",
    metadata,
    sa.Column("instance_id", Text, primary_key=True),
    sa.Column("body", sa.Text, nullable=False),
)

keys = sa.Table(
    "keys",
    metadata,
    sa.Column("key_id", Text, primary_key=True),
    sa.Column("created_at_s", sa.Float, nullable=False),
    sa.Column("revoked", sa.Boolean, nullable=False),
    sa.Column("body", sa.Text, nullable=False),
)

events = sa.Table(
    "events",
    metadata,
    sa.Column("seq", Whole, primary_key=True),
    sa.Column("model", Text, nullable=False),
    sa.Column("body", sa.Text, nullable=False),
    sqlite_autoincrement=True,  # a number is never given twice, also after the newest was deleted
)
events_by_model = sa.Index("events_by_model", events.c.model, events.c.seq)

usage = sa.Table(
    "usage",
    metadata,
    sa.Column("hour_s", Whole, primary_key=True),
    sa.Column("key_id", Text, primary_key=True),
    sa.Column("model", Text, primary_key=True),
    *(sa.Column(name, Whole, nullable=False) for name in Tokens.__struct_fields__),
)

usage_sources = sa.Table(
    "usage_sources",
    metadata,
    sa.Column("source", Text, primary_key=True),
    sa.Column("seq", Whole, nullable=False),
    sa.Column("seen_s", Whole, nullable=False),
)

counters = sa.Table(
    "counters",
    metadata,
    sa.Column("name", Text, primary_key=True),
    sa.Column("value", Whole, nullable=False),
)

leaderships = sa.Table(
    "leaderships",
    metadata,
    sa.Column("number", Whole, primary_key=True, autoincrement=False),
    sa.Column("owner", Text, nullable=False),
    sa.Column("name", Text, nullable=False),
    sa.Column("taken_at_s", sa.Float, nullable=False),
    sa.Column("renewed_at_s", sa.Float, nullable=False),
    sa.Column("ended_at_s", sa.Float),
    sa.Column("body", sa.Text, nullable=False),
)

tokens = sa.Table(
    "tokens",
    metadata,
    sa.Column("token_id", Text, primary_key=True),
    sa.Column("created_at_s", sa.Float, nullable=False),
    sa.Column("expires_at_s", sa.Float, nullable=False),
    sa.Column("body", sa.Text, nullable=False),
)

hosts = sa.Table(
    "hosts",
    metadata,
    sa.Column("host_id", Text, primary_key=True),
    sa.Column("token_id", Text, nullable=False),
    sa.Column("joined_at_s", sa.Float, nullable=False),
    sa.Column("removed_at_s", sa.Float),
    sa.Column("body", sa.Text, nullable=False),
)
