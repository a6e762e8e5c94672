"""Alembic's environment, shared by all services: the caller gives the connection and the tables."""

from alembic import context

connection = context.config.attributes["connection"]
context.configure(
    connection=connection,
    target_metadata=context.config.attributes["metadata"],
    # SQLite cannot alter a table; Alembic then copies it.
    render_as_batch=connection.dialect.name == "sqlite",
    compare_type=True,
    compare_server_default=False,
    # The caller's transaction is the migration's.
    transactional_ddl=True,
)
with context.begin_transaction():
    context.run_migrations()
