"""Alembic runs this file; the connection and its transaction are the caller's."""

from alembic import context

from hostler.storage.tables import metadata

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    transactional_ddl=True,
)
context.run_migrations()
