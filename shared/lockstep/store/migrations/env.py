"""Alembic's entry: migrates over the connection that `lockstep.store.migrate` hands over, inside its transaction."""

from alembic import context

from lockstep.store.schema import metadata

context.configure(
    connection=context.config.attributes["connection"], target_metadata=metadata, render_as_batch=True, transactional_ddl=True
)
context.run_migrations()
